//! Questions about a story, in one fixed plain form each, answered from the world and its log.
//!
//! A question is asked only if it has one answer: who gave a thing to somebody is not asked when it
//! was given twice, and where somebody found a thing is not asked when it was found in two spots.

use serde::{Deserialize, Serialize};

use super::world::{Event, Person, Thing, Whereabouts, World};

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QaKind {
    /// Where a thing is at the end.
    WhereThing,
    /// Where a person is at the end.
    WherePerson,
    /// Who has a thing at the end.
    WhoHas,
    /// Whether a person has a thing at the end: yes or no, and who has it.
    DoesHave,
    /// Who gave a thing to somebody.
    WhoGave,
    /// To whom a thing was given.
    GaveToWhom,
    /// What somebody found.
    WhatFound,
    /// Where somebody found a thing.
    WhereFound,
    /// Where somebody lost a thing.
    WhereLost,
    /// Where somebody looked in vain.
    WhereLooked,
    /// What somebody got in a trade.
    WhatTraded,
    /// How somebody felt at the last.
    HowFeel,
    /// Why somebody felt so.
    WhyFeel,
    /// The colour of a thing.
    Color,
}

/// A question about a story and its one right answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qa {
    /// The question: one sentence, ending in `?`.
    pub question: String,
    /// The answer: one whole sentence.
    pub answer: String,
    /// What the question is about.
    pub kind: QaKind,
}

/// Every question that the world can answer, in the order of things, people, then events.
pub(super) fn questions(world: &World) -> Vec<Qa> {
    let mut out = Vec::new();
    for thing in 0..world.props.len() {
        about_thing(world, thing, &mut out);
    }
    for who in 0..world.cast.len() {
        about_person(world, who, &mut out);
    }
    about_events(world, &mut out);
    out
}

fn about_thing(world: &World, thing: Thing, out: &mut Vec<Qa>) {
    let name = world.thing(thing);
    let place = world.place_of(thing).map(World::at_place);
    let answer = match (world.thing_at[thing], place) {
        (Whereabouts::With(who), Some(place)) => format!("The {name} is with {} {place}.", world.name(who)),
        (Whereabouts::At(spot), _) => format!("The {name} is {}.", World::spot_in_full(spot)),
        (Whereabouts::Inside(outer), _) => format!("The {name} is in the {}.", world.thing(outer)),
        (Whereabouts::Nowhere, _) | (_, None) => return,
    };
    out.push(Qa { question: format!("Where is the {name}?"), answer, kind: QaKind::WhereThing });
    let answer = match world.carrier(thing) {
        Some(who) => format!("{} has the {name}.", world.name(who)),
        None => format!("Nobody has the {name}."),
    };
    out.push(Qa { question: format!("Who has the {name}?"), answer: answer.clone(), kind: QaKind::WhoHas });
    for who in 0..world.cast.len() {
        let yes = if world.carrier(thing) == Some(who) { "Yes" } else { "No" };
        // `Yes, Tom has ...`, `No, nobody has ...`: a name keeps its capital.
        let rest = answer.replacen("Nobody", "nobody", 1);
        out.push(Qa {
            question: format!("Does {} have the {name}?", world.name(who)),
            answer: format!("{yes}, {rest}"),
            kind: QaKind::DoesHave,
        });
    }
    if let Some(color) = world.color(thing) {
        let noun = world.noun(thing).noun;
        out.push(Qa {
            question: format!("What color is the {noun}?"),
            answer: format!("The {noun} is {color}."),
            kind: QaKind::Color,
        });
    }
}

fn about_person(world: &World, who: Person, out: &mut Vec<Qa>) {
    let name = world.name(who);
    if let Some(place) = world.person_at[who] {
        out.push(Qa {
            question: format!("Where is {name}?"),
            answer: format!("{name} is {}.", World::at_place(place)),
            kind: QaKind::WherePerson,
        });
    }
    let felt = world.log.iter().rev().find_map(|event| match event {
        Event::Feel { who: by, feeling, because } if *by == who => Some((feeling.word(), because)),
        _ => None,
    });
    if let Some((word, because)) = felt {
        out.push(Qa {
            question: format!("How did {name} feel in the end?"),
            answer: format!("{name} felt {word}."),
            kind: QaKind::HowFeel,
        });
        out.push(Qa {
            question: format!("Why did {name} feel {word}?"),
            answer: format!("{name} felt {word} because {because}."),
            kind: QaKind::WhyFeel,
        });
    }
}

fn about_events(world: &World, out: &mut Vec<Qa>) {
    for event in &world.log {
        match event {
            Event::Give { from, to, thing } => {
                let (a, b, t) = (world.name(*from), world.name(*to), world.thing(*thing));
                let answer = format!("{a} gave the {t} to {b}.");
                if once(world, |other| matches!(other, Event::Give { to: o, thing: x, .. } if o == to && x == thing)) {
                    out.push(Qa {
                        question: format!("Who gave the {t} to {b}?"),
                        answer: answer.clone(),
                        kind: QaKind::WhoGave,
                    });
                }
                if once(
                    world,
                    |other| matches!(other, Event::Give { from: o, thing: x, .. } if o == from && x == thing),
                ) {
                    out.push(Qa {
                        question: format!("To whom did {a} give the {t}?"),
                        answer,
                        kind: QaKind::GaveToWhom,
                    });
                }
            }
            Event::Find { who, thing } => {
                let (a, t) = (world.name(*who), world.thing(*thing));
                if once(world, |other| matches!(other, Event::Find { who: o, .. } if o == who)) {
                    out.push(Qa {
                        question: format!("What did {a} find?"),
                        answer: format!("{a} found the {t}."),
                        kind: QaKind::WhatFound,
                    });
                    if let Some(spot) = resting_spot(world, event, *thing) {
                        out.push(Qa {
                            question: format!("Where did {a} find the {t}?"),
                            answer: format!("{a} found the {t} {spot}."),
                            kind: QaKind::WhereFound,
                        });
                    }
                }
            }
            Event::Lose { who, thing, spot } => {
                let (a, t) = (world.name(*who), world.thing(*thing));
                out.push(Qa {
                    question: format!("Where did {a} lose the {t}?"),
                    answer: format!("{a} lost the {t} {}.", World::spot_in_full(*spot)),
                    kind: QaKind::WhereLost,
                });
            }
            Event::Look { who, thing, spot } => {
                let (a, t) = (world.name(*who), world.thing(*thing));
                if once(world, |other| matches!(other, Event::Look { who: o, thing: x, .. } if o == who && x == thing))
                {
                    out.push(Qa {
                        question: format!("Where did {a} look but not find the {t}?"),
                        answer: format!("{a} looked {}.", World::spot_in_full(*spot)),
                        kind: QaKind::WhereLooked,
                    });
                }
            }
            Event::Swap { a, x, b, y } => {
                for (who, got, other) in [(a, y, b), (b, x, a)] {
                    let (name, from) = (world.name(*who), world.name(*other));
                    out.push(Qa {
                        question: format!("What did {name} get from {from} in the trade?"),
                        answer: format!("{name} got the {}.", world.thing(*got)),
                        kind: QaKind::WhatTraded,
                    });
                }
            }
            _ => {}
        }
    }
}

/// Whether exactly one event of the log is such.
fn once(world: &World, such: impl Fn(&Event) -> bool) -> bool {
    world.log.iter().filter(|event| such(event)).count() == 1
}

/// The spot where the thing lay just before the event.
fn resting_spot(world: &World, event: &Event, thing: Thing) -> Option<String> {
    let at = world.log.iter().position(|other| std::ptr::eq(other, event))?;
    world.log[..at].iter().rev().find_map(|earlier| match earlier {
        Event::Lies { thing: t, spot } | Event::Put { thing: t, spot, .. } | Event::Lose { thing: t, spot, .. }
            if *t == thing =>
        {
            Some(World::spot_in_full(*spot))
        }
        _ => None,
    })
}
