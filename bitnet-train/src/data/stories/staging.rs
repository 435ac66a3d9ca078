//! Setting the scene: who and what is in the story, where, in what weather.

use super::scene::{Fill, Scene, with_article};
use super::words::{Class, NAMES, NOUNS, PLACES, ROLES, TIMES, TRAITS, WEATHERS, Weather, adjectives};
use super::world::{Event, Person, Place, Spot, Thing};

impl Scene {
    /// A person who is not yet in the story.
    pub(super) fn new_person(&mut self) -> Person {
        loop {
            let name = self.dice.below(NAMES.len());
            if self.world.cast.iter().all(|actor| actor.name != name) {
                return self.world.add_person(name);
            }
        }
    }

    /// A thing whose noun is not yet in the story; a box only where asked for one.
    pub(super) fn new_thing(&mut self, is_box: bool) -> Thing {
        loop {
            let noun = self.dice.below(NOUNS.len());
            let fits = (NOUNS[noun].class == Class::Box) == is_box;
            if fits && self.world.props.iter().all(|prop| prop.noun != noun) {
                return self.add_prop(noun);
            }
        }
    }

    /// A thing of this noun with an adjective that no other thing of the story has.
    pub(super) fn add_prop(&mut self, noun: usize) -> Thing {
        let choices = adjectives(NOUNS[noun].class);
        loop {
            let adjective = self.dice.below(choices.len());
            let taken = (0..self.world.props.len()).any(|other| self.world.adjective(other) == choices[adjective]);
            if !taken {
                return self.world.add_thing(noun, adjective);
            }
        }
    }

    /// A place other than the given ones.
    pub(super) fn other_place(&mut self, not: &[Place]) -> Place {
        loop {
            let place = self.dice.below(PLACES.len());
            if !not.contains(&place) {
                return place;
            }
        }
    }

    /// A spot of the place.
    pub(super) fn spot_at(&mut self, place: Place) -> Spot {
        Spot { place, spot: self.dice.below(3) }
    }

    /// A spot of the place other than the given one.
    pub(super) fn other_spot(&mut self, not: Spot) -> Spot {
        Spot { place: not.place, spot: (not.spot + 1 + self.dice.below(2)) % 3 }
    }

    /// Where the person is; a person of a plot always is somewhere.
    pub(super) fn place_of(&self, who: Person) -> Place {
        self.world.person_at[who].unwrap_or(0)
    }

    /// Opens the story with its time, weather, and first person at a place.
    pub(super) fn open(&mut self, a: Person, place: Place) -> &'static Weather {
        self.happen(Event::Stands { who: a, place });
        let weather = self.dice.pick(WEATHERS);
        let time = *self.dice.pick(TIMES);
        let opening = *self.dice.pick(&weather.openings);
        let adjective = weather.adjective;
        let who = format!("{} {}", self.dice.pick(TRAITS), self.dice.pick(ROLES));
        let who = with_article(&who);
        let templates = [
            format!("It was a {adjective} {time}. {{A}} was {{at}}."),
            format!("One {adjective} {time}, {{A}} was {{at}}."),
            format!("{opening}, and {{A}} was {{at}}."),
            format!("There was once {who} named {{A}}. One {adjective} {time}, {{he}} was {{at}}."),
            format!("{{A}} was {who}. It was a {adjective} {time}, and {{he}} was {{at}}."),
            format!("{{A}} went {{to}} one {adjective} {time}. {opening}."),
            format!("{{A}}, {who}, was {{at}}. {opening}."),
            format!("On a {adjective} {time}, {{A}} liked to {{act}}. So {{he}} was {{at}} again."),
        ];
        let templates: Vec<&str> = templates.iter().map(String::as_str).collect();
        self.say(&templates, Fill::a(a).at(place));
        weather
    }

    /// Something about the weather.
    pub(super) fn weather(&mut self, weather: &'static Weather) {
        let detail = *self.dice.pick(&weather.details);
        self.note(detail);
    }

    /// The person owns the thing from the start.
    pub(super) fn owns(&mut self, a: Person, t: Thing) {
        self.happen(Event::Owns { who: a, thing: t });
        self.say(
            &[
                "{a} had {t1}.",
                "{a} was carrying {t1}.",
                "{a} had {t1}, and {he} took it everywhere.",
                "{a} had brought {t1}.",
                "{a} had {t1} and was very fond of it.",
                "{a} had {t1}, which was good to {want}.",
                "In {his} hand, {he} held {t1}.",
                "{a} had {t1}. It was a present from {his} uncle.",
            ],
            Fill::a(a).t(t),
        );
    }

    /// A second person is already at the place of the first.
    pub(super) fn is_there_too(&mut self, a: Person, b: Person) {
        let place = self.place_of(a);
        self.happen(Event::Stands { who: b, place });
        self.happen(Event::Meet { a, b });
        self.say(
            &[
                "{a} met {b} there.",
                "{b} was there too.",
                "There {he} met {his} friend {b}.",
                "{a} saw {b} and waved.",
                "{b} was there and said hello to {A}.",
                "{a} was glad to see {b} there.",
                "{his} neighbor {b} was already there.",
            ],
            Fill::ab(a, b),
        );
    }

    /// A second person is somewhere else.
    pub(super) fn is_elsewhere(&mut self, b: Person, place: Place) {
        self.happen(Event::Stands { who: b, place });
        self.say(
            &["At that time, {A} was {at}.", "{A} was {at} that day.", "Meanwhile, {A} was {at}."],
            Fill::a(b).at(place),
        );
    }
}
