//! The small world a story happens in: who is where, who has what, and a log of what happened.
//!
//! Every event is checked against the world before it is applied, so a plot cannot give away what a
//! person does not have or pick up what lies elsewhere. The log is the truth that questions are
//! asked about; replaying it from nothing gives the same world (a test does).

use super::words::{COLORS, NAMES, NOUNS, Noun, PLACES, PlaceWords, adjectives};

/// A person: an index into the cast of one story.
pub(super) type Person = usize;

/// A thing: an index into the props of one story.
pub(super) type Thing = usize;

/// A place: an index into [`PLACES`].
pub(super) type Place = usize;

/// One of the three spots of a place, or the open floor of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub place: Place,
    pub spot: usize,
}

/// Where a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whereabouts {
    Nowhere,
    With(Person),
    At(Spot),
    Inside(Thing),
}

/// How a person feels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feeling {
    Happy,
    Sad,
    Proud,
    Surprised,
    Worried,
    Thankful,
    Glad,
}

impl Feeling {
    /// The adjective.
    pub(super) fn word(self) -> &'static str {
        match self {
            Feeling::Happy => "happy",
            Feeling::Sad => "sad",
            Feeling::Proud => "proud",
            Feeling::Surprised => "surprised",
            Feeling::Worried => "worried",
            Feeling::Thankful => "thankful",
            Feeling::Glad => "glad",
        }
    }
}

/// One thing that happened. `Owns`, `Lies` and `Stands` set the scene; the others change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Stands { who: Person, place: Place },
    Owns { who: Person, thing: Thing },
    Lies { thing: Thing, spot: Spot },
    Go { who: Person, to: Place },
    Take { who: Person, thing: Thing },
    Find { who: Person, thing: Thing },
    Put { who: Person, thing: Thing, spot: Spot },
    Pack { who: Person, thing: Thing, into: Thing },
    Give { from: Person, to: Person, thing: Thing },
    Lose { who: Person, thing: Thing, spot: Spot },
    Swap { a: Person, x: Thing, b: Person, y: Thing },
    Look { who: Person, thing: Thing, spot: Spot },
    Meet { a: Person, b: Person },
    Feel { who: Person, feeling: Feeling, because: String },
}

/// A person of the cast: an index into [`NAMES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Actor {
    pub name: usize,
}

/// A prop: an index into [`NOUNS`] and one into the adjectives of its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prop {
    pub noun: usize,
    pub adjective: usize,
}

/// The state, and the log that led to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct World {
    pub cast: Vec<Actor>,
    pub props: Vec<Prop>,
    pub person_at: Vec<Option<Place>>,
    pub thing_at: Vec<Whereabouts>,
    pub log: Vec<Event>,
}

impl World {
    /// Adds a person who is nowhere yet.
    pub(super) fn add_person(&mut self, name: usize) -> Person {
        self.cast.push(Actor { name });
        self.person_at.push(None);
        self.cast.len() - 1
    }

    /// Adds a thing that is nowhere yet.
    pub(super) fn add_thing(&mut self, noun: usize, adjective: usize) -> Thing {
        self.props.push(Prop { noun, adjective });
        self.thing_at.push(Whereabouts::Nowhere);
        self.props.len() - 1
    }

    /// The person's name.
    pub(super) fn name(&self, who: Person) -> &'static str {
        NAMES[self.cast[who].name].name
    }

    /// Whether the person is a she.
    pub(super) fn female(&self, who: Person) -> bool {
        NAMES[self.cast[who].name].female
    }

    /// The entry of the thing's noun.
    pub(super) fn noun(&self, thing: Thing) -> &'static Noun {
        &NOUNS[self.props[thing].noun]
    }

    /// The thing's adjective.
    pub(super) fn adjective(&self, thing: Thing) -> &'static str {
        adjectives(self.noun(thing).class)[self.props[thing].adjective]
    }

    /// The thing's colour, if its adjective is one.
    pub(super) fn color(&self, thing: Thing) -> Option<&'static str> {
        (self.props[thing].adjective < COLORS).then(|| self.adjective(thing))
    }

    /// Adjective and noun: `red ball`.
    pub(super) fn thing(&self, thing: Thing) -> String {
        format!("{} {}", self.adjective(thing), self.noun(thing).noun)
    }

    /// The place's words.
    pub(super) fn place(place: Place) -> &'static PlaceWords {
        &PLACES[place]
    }

    /// `in the garden`.
    pub(super) fn at_place(place: Place) -> String {
        format!("{} the {}", PLACES[place].at, PLACES[place].noun)
    }

    /// `under the old tree`.
    pub(super) fn spot(spot: Spot) -> &'static str {
        PLACES[spot.place].spots[spot.spot]
    }

    /// `under the old tree in the garden`.
    pub(super) fn spot_in_full(spot: Spot) -> String {
        format!("{} {}", Self::spot(spot), Self::at_place(spot.place))
    }

    /// Who carries the thing, directly or inside another thing.
    pub(super) fn carrier(&self, thing: Thing) -> Option<Person> {
        match self.thing_at[thing] {
            Whereabouts::With(who) => Some(who),
            Whereabouts::Inside(outer) => self.carrier(outer),
            Whereabouts::At(_) | Whereabouts::Nowhere => None,
        }
    }

    /// The place where the thing is, through whoever carries it.
    pub(super) fn place_of(&self, thing: Thing) -> Option<Place> {
        match self.thing_at[thing] {
            Whereabouts::With(who) => self.person_at[who],
            Whereabouts::At(spot) => Some(spot.place),
            Whereabouts::Inside(outer) => self.place_of(outer),
            Whereabouts::Nowhere => None,
        }
    }

    /// Checks the event against the world, applies it and logs it.
    ///
    /// # Errors
    ///
    /// Says what contradicts the world; a plot that causes one is a bug of the plot.
    pub(super) fn apply(&mut self, event: Event) -> Result<(), String> {
        let check = |fine: bool, what: &str| {
            if fine { Ok(()) } else { Err(format!("{what}: {event:?}")) }
        };
        match event {
            Event::Stands { who, place } => {
                check(self.person_at[who].is_none(), "already somewhere")?;
                self.person_at[who] = Some(place);
            }
            Event::Owns { who, thing } => {
                check(self.thing_at[thing] == Whereabouts::Nowhere, "already somewhere")?;
                self.thing_at[thing] = Whereabouts::With(who);
            }
            Event::Lies { thing, spot } => {
                check(self.thing_at[thing] == Whereabouts::Nowhere, "already somewhere")?;
                self.thing_at[thing] = Whereabouts::At(spot);
            }
            Event::Go { who, to } => {
                check(self.person_at[who].is_some_and(|at| at != to), "must come from elsewhere")?;
                self.person_at[who] = Some(to);
            }
            Event::Take { who, thing } | Event::Find { who, thing } => {
                let here = self.person_at[who];
                check(here.is_some() && self.place_of(thing) == here, "not where the thing is")?;
                check(self.carrier(thing).is_none_or(|by| by == who), "someone else has it")?;
                check(self.thing_at[thing] != Whereabouts::With(who), "already in hand")?;
                self.thing_at[thing] = Whereabouts::With(who);
            }
            Event::Put { who, thing, spot } | Event::Lose { who, thing, spot } => {
                check(self.carrier(thing) == Some(who), "does not have it")?;
                check(self.person_at[who] == Some(spot.place), "not at that place")?;
                self.thing_at[thing] = Whereabouts::At(spot);
            }
            Event::Pack { who, thing, into } => {
                check(self.thing_at[thing] == Whereabouts::With(who), "not in hand")?;
                check(thing != into && self.thing_at[into] == Whereabouts::With(who), "no such box in hand")?;
                self.thing_at[thing] = Whereabouts::Inside(into);
            }
            Event::Give { from, to, thing } => {
                check(self.carrier(thing) == Some(from), "does not have it")?;
                check(from != to && self.together(from, to), "not at the same place")?;
                self.thing_at[thing] = Whereabouts::With(to);
            }
            Event::Swap { a, x, b, y } => {
                check(self.carrier(x) == Some(a) && self.carrier(y) == Some(b), "do not have them")?;
                check(a != b && self.together(a, b), "not at the same place")?;
                self.thing_at[x] = Whereabouts::With(b);
                self.thing_at[y] = Whereabouts::With(a);
            }
            Event::Look { who, thing, spot } => {
                check(self.person_at[who] == Some(spot.place), "not at that place")?;
                check(self.thing_at[thing] != Whereabouts::At(spot), "it would be found")?;
            }
            Event::Meet { a, b } => check(a != b && self.together(a, b), "not at the same place")?,
            Event::Feel { .. } => {}
        }
        self.log.push(event);
        Ok(())
    }

    /// Whether two people are at the same place.
    pub(super) fn together(&self, a: Person, b: Person) -> bool {
        self.person_at[a].is_some() && self.person_at[a] == self.person_at[b]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_people_and_a_ball() -> World {
        let mut world = World::default();
        let tom = world.add_person(30);
        let anna = world.add_person(0);
        let ball = world.add_thing(0, 0);
        for event in [
            Event::Stands { who: tom, place: 0 },
            Event::Stands { who: anna, place: 1 },
            Event::Owns { who: tom, thing: ball },
        ] {
            world.apply(event).expect("a fresh world takes any scene");
        }
        world
    }

    #[test]
    fn refuses_what_contradicts_the_world() {
        let spot = Spot { place: 1, spot: 0 };
        for (event, said) in [
            (Event::Give { from: 0, to: 1, thing: 0 }, "not at the same place"),
            (Event::Give { from: 1, to: 0, thing: 0 }, "does not have it"),
            (Event::Take { who: 1, thing: 0 }, "not where the thing is"),
            (Event::Put { who: 0, thing: 0, spot }, "not at that place"),
            (Event::Go { who: 0, to: 0 }, "must come from elsewhere"),
            (Event::Owns { who: 1, thing: 0 }, "already somewhere"),
        ] {
            let mut world = two_people_and_a_ball();
            let before = world.clone();
            let refusal = world.apply(event).expect_err("must be refused");
            assert!(refusal.starts_with(said), "{refusal}");
            assert_eq!(world, before);
        }
    }

    #[test]
    fn what_is_inside_travels_with_the_box() {
        let mut world = two_people_and_a_ball();
        let bag = world.add_thing(80, 0);
        for event in [
            Event::Owns { who: 0, thing: bag },
            Event::Pack { who: 0, thing: 0, into: bag },
            Event::Go { who: 0, to: 1 },
            Event::Give { from: 0, to: 1, thing: bag },
        ] {
            world.apply(event).expect("consistent");
        }
        assert_eq!(world.carrier(0), Some(1));
        assert_eq!(world.place_of(0), Some(1));
        assert_eq!(world.carrier(bag), Some(1));
    }
}
