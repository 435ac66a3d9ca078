//! What people do in a story: each act changes the world and is told in one of several ways.

use super::scene::{Fill, Scene, with_article};
use super::words::{Class, NAMES, NOUNS, PLACES, ROLES, TIMES, TRAITS, WEATHERS, Weather, adjectives};
use super::world::{Event, Feeling, Person, Place, Spot, Thing};

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

    /// One person goes to a place.
    pub(super) fn go(&mut self, a: Person, to: Place) {
        self.happen(Event::Go { who: a, to });
        self.then(
            &[
                "{a} went {to}.",
                "{a} walked {to}.",
                "{a} took the road {to}.",
                "{a} made {his} way {to}.",
                "{a} ran {to}.",
                "{a} left and went {to}.",
                "{a} set off and walked {to}.",
            ],
            Fill::a(a).at(to),
        );
    }

    /// One person goes to where another already is, and meets them.
    pub(super) fn go_to(&mut self, a: Person, b: Person) {
        let to = self.place_of(b);
        self.happen(Event::Go { who: a, to });
        self.happen(Event::Meet { a, b });
        self.then(
            &[
                "{a} went {to} and found {b} there.",
                "{a} walked {to} and saw {b}.",
                "{a} hurried {to}, where {b} was waiting.",
                "{a} went {to} to see {b}.",
                "{a} made {his} way {to} and met {b} there.",
                "{a} came {to} and said hello to {b}.",
            ],
            Fill::ab(a, b).at(to),
        );
    }

    /// Two people go together.
    pub(super) fn go_together(&mut self, a: Person, b: Person, to: Place) {
        self.happen(Event::Go { who: a, to });
        self.happen(Event::Go { who: b, to });
        self.say(
            &[
                "{ab} went {to} together.",
                "Together {ab} walked {to}.",
                "{ab} walked side by side {to}.",
                "Then {ab} went {to}.",
                "{ab} talked all the way {to}.",
                "{ab} set off {to}.",
            ],
            Fill::ab(a, b).at(to),
        );
    }

    /// What the person does at the place where they are.
    pub(super) fn enjoy(&mut self, a: Person) {
        let place = self.place_of(a);
        self.then(
            &[
                "{a} {acted}.",
                "{a} {acted} for a while.",
                "{a} {acted} and felt calm.",
                "{a} stayed to {act}.",
                "{a} {acted} and hummed a song.",
                "{a} had time to {act}.",
            ],
            Fill::a(a).at(place),
        );
    }

    /// What two people do together at their place.
    pub(super) fn enjoy_together(&mut self, a: Person, b: Person) {
        let place = self.place_of(a);
        self.say(
            &[
                "{ab} {acted} together.",
                "{ab} {acted} and laughed.",
                "{ab} stopped to {act}.",
                "There {ab} {acted} for an hour.",
                "{ab} {acted} and had a good time.",
            ],
            Fill::ab(a, b).at(place),
        );
    }

    /// The person takes the thing from the spot or the box where it is.
    pub(super) fn take(&mut self, a: Person, t: Thing) {
        self.happen(Event::Take { who: a, thing: t });
        self.then(
            &["{a} picked up {t}.", "{a} took {t}.", "{a} reached out and took {t}.", "{a} took {t} with {him}."],
            Fill::a(a).t(t),
        );
    }

    /// The person comes upon the thing at a spot and takes it.
    pub(super) fn find(&mut self, a: Person, t: Thing, spot: Spot) {
        self.happen(Event::Find { who: a, thing: t });
        self.then(
            &[
                "{a} found {t} {spot}.",
                "{a} looked {spot} and found {t}.",
                "{a} saw {t} {spot} and picked it up.",
                "{a} found {t} lying {spot}. {a} picked it up.",
                "There, {spot}, {a} found {t}.",
            ],
            Fill::a(a).t(t).spot(spot),
        );
    }

    /// The person comes upon a thing that the story has not spoken of.
    pub(super) fn discover(&mut self, a: Person, t: Thing, spot: Spot) {
        self.happen(Event::Find { who: a, thing: t });
        self.then(
            &[
                "{a} found {t1} {spot}.",
                "{a} looked {spot} and found {t1}.",
                "{a} saw {t1} {spot} and picked it up.",
                "Something was lying {spot}. It was {t1}, and {a} picked it up.",
                "To {his} surprise, {a} found {t1} {spot}.",
            ],
            Fill::a(a).t(t).spot(spot),
        );
    }

    /// The person puts the thing at a spot.
    pub(super) fn put(&mut self, a: Person, t: Thing, spot: Spot) {
        self.happen(Event::Put { who: a, thing: t, spot });
        self.then(
            &[
                "{a} put {t} {spot}.",
                "{a} left {t} {spot}.",
                "{a} laid {t} {spot}.",
                "{a} set {t} down {spot}.",
                "{a} put {t} {spot} with care.",
            ],
            Fill::a(a).t(t).spot(spot),
        );
    }

    /// The person hides the thing at a spot.
    pub(super) fn hide(&mut self, a: Person, t: Thing, spot: Spot) {
        self.happen(Event::Put { who: a, thing: t, spot });
        self.then(
            &[
                "{a} hid {t} {spot}.",
                "{a} hid {t} {spot}, where nobody would look.",
                "{a} quietly hid {t} {spot}.",
                "{a} chose a good place and hid {t} {spot}.",
            ],
            Fill::a(a).t(t).spot(spot),
        );
    }

    /// The person puts one thing into another that they carry.
    pub(super) fn pack(&mut self, a: Person, t: Thing, u: Thing) {
        self.happen(Event::Pack { who: a, thing: t, into: u });
        self.then(
            &[
                "{a} put {t} in {u}.",
                "{a} packed {t} into {u}.",
                "{a} placed {t} in {u} and closed it.",
                "{a} put {t} in {u} to keep it safe.",
            ],
            Fill::a(a).t(t).u(u),
        );
    }

    /// One person gives another the thing.
    pub(super) fn give(&mut self, a: Person, b: Person, t: Thing) {
        self.happen(Event::Give { from: a, to: b, thing: t });
        self.then(
            &[
                "{a} gave {t} to {b}.",
                "{a} gave {b} {t}.",
                "{a} handed {t} to {b}.",
                "{a} smiled and gave {t} to {b}.",
                "{a} held out {t}, and {b} took it.",
                "{a} gave {t} to {b} and said, \"This is for you.\"",
                "\"Here, please take it,\" said {A}, and gave {t} to {b}.",
            ],
            Fill::ab(a, b).t(t),
        );
    }

    /// The thing is given back to the person who had it before.
    pub(super) fn give_back(&mut self, a: Person, b: Person, t: Thing) {
        self.happen(Event::Give { from: a, to: b, thing: t });
        self.then(
            &[
                "{a} gave {t} back to {b}.",
                "{a} handed {t} back to {b}.",
                "{a} gave {t} back to {b} at once.",
                "{a} smiled and gave {t} back to {b}.",
                "\"This is yours,\" said {A}, and gave {t} back to {b}.",
            ],
            Fill::ab(a, b).t(t),
        );
    }

    /// The thing falls at a spot and its owner does not see it.
    pub(super) fn lose(&mut self, a: Person, t: Thing, spot: Spot) {
        self.happen(Event::Lose { who: a, thing: t, spot });
        self.then(
            &[
                "{a} dropped {t} {spot} and did not see it fall.",
                "{a} did not notice when {t} fell and landed {spot}.",
                "But {a} was not careful, and {t} fell and landed {spot}.",
                "{a} left {t} {spot} and forgot about it.",
                "Without a sound, {t} fell and landed {spot}. {a} did not notice.",
            ],
            Fill::a(a).t(t).spot(spot),
        );
    }

    /// Two people swap things.
    pub(super) fn swap(&mut self, a: Person, x: Thing, b: Person, y: Thing) {
        self.happen(Event::Swap { a, x, b, y });
        self.say(
            &[
                "So {a} gave {t} to {b}, and {b} gave {u} to {A}.",
                "{a} and {b} traded. {A} got {u}, and {b} got {t}.",
                "{a} traded {t} for {u}, and {b} was glad to have {t}.",
                "They traded. {b} took {t}, and {A} took {u}.",
            ],
            Fill::ab(a, b).t(x).u(y),
        );
    }

    /// The person looks for the thing at a spot where it is not.
    pub(super) fn look(&mut self, a: Person, t: Thing, spot: Spot) {
        self.happen(Event::Look { who: a, thing: t, spot });
        self.then(
            &[
                "{a} looked {spot}, but {t} was not there.",
                "{a} looked for {t} {spot}, but could not find it.",
                "{a} searched {spot} and did not find {t}.",
            ],
            Fill::a(a).t(t).spot(spot),
        );
    }

    /// The person feels something, for a reason that is a clause without pronouns.
    pub(super) fn feel(&mut self, a: Person, feeling: Feeling, because: &str) {
        let word = feeling.word();
        self.happen(Event::Feel { who: a, feeling, because: because.to_string() });
        let templates = [
            format!("{{a}} was {word} because {because}."),
            format!("{{a}} felt {word} because {because}."),
            format!("{{a}} was very {word} because {because}."),
            format!("{{a}} felt very {word}, because {because}."),
        ];
        let templates: Vec<&str> = templates.iter().map(String::as_str).collect();
        // Names inside the reason may be of the same kind, so the next sentence says the name again.
        self.say_by_name(&templates, Fill::a(a));
    }
}
