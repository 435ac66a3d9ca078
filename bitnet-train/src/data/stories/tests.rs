//! Properties of the generated stories.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{Event, Thing, Whereabouts, World};
use super::*;

const SAMPLES: u64 = 3000;

fn samples() -> impl Iterator<Item = (Story, World)> {
    (0..SAMPLES).map(|index| {
        let split = if index % 4 == 0 { Split::Validation } else { Split::Train };
        tell(11, split, index)
    })
}

#[test]
fn a_story_is_a_function_of_seed_split_and_index() {
    for index in [0, 1, 77, 1 << 40] {
        let first = story(5, Split::Train, index);
        story(6, Split::Train, index);
        assert_eq!(first, story(5, Split::Train, index));
        assert_ne!(first, story(6, Split::Train, index));
        assert_ne!(first, story(5, Split::Train, index + 1));
    }
}

#[test]
fn text_is_clean_english() {
    for (story, _) in samples() {
        let text = story.document();
        assert!(text.is_ascii(), "{text}");
        assert!(!text.contains("  ") && !text.contains(['{', '}']), "{text}");
        let words = story.text.split_whitespace().count();
        assert!((MIN_WORDS..=MAX_WORDS).contains(&words), "{words}");
        let mut previous = ".";
        for word in text.split_whitespace() {
            let bare = word.trim_start_matches('"');
            if previous.ends_with(['.', '!', '?']) || previous.ends_with(".\"") {
                assert!(bare.starts_with(|c: char| c.is_ascii_uppercase()), "`{previous} {word}` in {text}");
            }
            let vowel = bare.starts_with(['a', 'e', 'i', 'o', 'u']);
            match previous {
                "a" | "A" => assert!(!vowel, "`a {word}` in {text}"),
                "an" | "An" => assert!(vowel || bare.starts_with("hour"), "`an {word}` in {text}"),
                _ => {}
            }
            previous = word;
        }
        assert!(text.trim_end().ends_with(['.', '!', '?']), "{text}");
        assert_eq!(text.matches('"').count() % 2, 0, "{text}");
        for wrong in ["picked up it", "held out it", " it it ", " the the "] {
            assert!(!text.contains(wrong), "{text}");
        }
    }
}

#[test]
fn no_plot_contradicts_its_world() {
    for (story, world) in samples() {
        let mut replayed = World { cast: world.cast.clone(), props: world.props.clone(), ..World::default() };
        replayed.person_at = vec![None; world.cast.len()];
        replayed.thing_at = vec![Whereabouts::Nowhere; world.props.len()];
        for event in &world.log {
            replayed.apply(event.clone()).unwrap_or_else(|fault| panic!("{fault}\n{}", story.text));
        }
        assert_eq!(replayed, world);
    }
}

/// The last word on a thing, read from the log backwards: a second way to the same answer.
fn last_word(log: &[Event], thing: Thing) -> Whereabouts {
    log.iter()
        .rev()
        .find_map(|event| match *event {
            Event::Owns { who, thing: t } | Event::Take { who, thing: t } | Event::Find { who, thing: t }
                if t == thing =>
            {
                Some(Whereabouts::With(who))
            }
            Event::Give { to, thing: t, .. } if t == thing => Some(Whereabouts::With(to)),
            Event::Lies { thing: t, spot } | Event::Put { thing: t, spot, .. } | Event::Lose { thing: t, spot, .. }
                if t == thing =>
            {
                Some(Whereabouts::At(spot))
            }
            Event::Pack { thing: t, into, .. } if t == thing => Some(Whereabouts::Inside(into)),
            Event::Swap { x, b, .. } if x == thing => Some(Whereabouts::With(b)),
            Event::Swap { a, y, .. } if y == thing => Some(Whereabouts::With(a)),
            _ => None,
        })
        .unwrap_or(Whereabouts::Nowhere)
}

#[test]
fn answers_agree_with_the_log() {
    let mut kinds = BTreeSet::new();
    for (story, world) in samples() {
        assert!(!story.questions.is_empty());
        let asked: BTreeSet<&str> = story.questions.iter().map(|qa| qa.question.as_str()).collect();
        assert_eq!(asked.len(), story.questions.len(), "a question is asked twice: {:?}", story.questions);
        for qa in &story.questions {
            kinds.insert(qa.kind);
            let holder = |thing: Thing| {
                let mut at = last_word(&world.log, thing);
                while let Whereabouts::Inside(outer) = at {
                    at = last_word(&world.log, outer);
                }
                match at {
                    Whereabouts::With(who) => world.name(who),
                    _ => "Nobody",
                }
            };
            for thing in 0..world.props.len() {
                let name = world.thing(thing);
                if qa.question == format!("Who has the {name}?") {
                    assert_eq!(qa.answer, format!("{} has the {name}.", holder(thing)));
                }
                if qa.question == format!("Where is the {name}?") {
                    match last_word(&world.log, thing) {
                        Whereabouts::With(who) => assert!(qa.answer.contains(&format!("is with {} ", world.name(who)))),
                        Whereabouts::At(spot) => assert!(qa.answer.contains(&World::spot_in_full(spot))),
                        Whereabouts::Inside(outer) => assert!(qa.answer.contains(&world.thing(outer))),
                        Whereabouts::Nowhere => panic!("asked about a thing that is nowhere"),
                    }
                }
                for who in 0..world.cast.len() {
                    let person = world.name(who);
                    if qa.question == format!("Does {person} have the {name}?") {
                        assert_eq!(qa.answer.starts_with("Yes, "), holder(thing) == person, "{qa:?}\n{}", story.text);
                    }
                }
            }
            for who in 0..world.cast.len() {
                let person = world.name(who);
                if qa.question == format!("Where is {person}?") {
                    let last = world.log.iter().rev().find_map(|event| match *event {
                        Event::Go { who: w, to: place } | Event::Stands { who: w, place } if w == who => Some(place),
                        _ => None,
                    });
                    let place = World::at_place(last.expect("everyone in a story stands somewhere"));
                    assert_eq!(qa.answer, format!("{person} is {place}."));
                }
            }
        }
    }
    assert_eq!(kinds.len(), 14, "some kind of question never comes up: {kinds:?}");
}

#[test]
fn what_is_asked_was_told() {
    // Every person and every thing of a question is named in the text.
    for (story, world) in samples() {
        for who in 0..world.cast.len() {
            assert!(story.text.contains(world.name(who)), "{} in {}", world.name(who), story.text);
        }
        for thing in 0..world.props.len() {
            assert!(story.text.contains(&world.thing(thing)), "{} in {}", world.thing(thing), story.text);
        }
    }
}

#[test]
fn train_never_tells_of_a_held_out_pair() {
    let mut held_out = 0;
    for (index, (_, world)) in samples().enumerate() {
        let kept = is_held_out(world.name(0), world.noun(0).noun);
        assert_eq!(kept, index % 4 == 0);
        held_out += usize::from(kept);
    }
    assert!(held_out > 0);
    let pairs = NAMES.iter().flat_map(|name| NOUNS.iter().map(move |noun| is_held_out(name.name, noun.noun)));
    let share = pairs.clone().filter(|&kept| kept).count() as f64 / pairs.count() as f64;
    assert!((0.03..0.07).contains(&share), "{share}");
}

#[test]
fn texts_are_distinct_and_validation_is_not_in_train() {
    let train: BTreeSet<String> = (0..10_000).map(|index| story(1, Split::Train, index).text).collect();
    let distinct = train.len();
    assert_eq!(distinct, 10_000, "two train stories are the same");
    let validation: BTreeSet<String> = (0..1_000).map(|index| story(1, Split::Validation, index).text).collect();
    assert_eq!(validation.len(), 1_000);
    assert_eq!(validation.intersection(&train).count(), 0);
}

#[test]
fn the_vocabulary_is_modest_and_the_openings_vary() {
    let mut words: BTreeMap<String, usize> = BTreeMap::new();
    let mut openings = BTreeSet::new();
    for (story, _) in samples() {
        openings.insert(story.text.split_whitespace().take(5).collect::<Vec<_>>().join(" "));
        for word in story.document().split(|c: char| !c.is_ascii_alphabetic()) {
            *words.entry(word.to_ascii_lowercase()).or_default() += 1;
        }
    }
    assert!((700..1600).contains(&words.len()), "{} words", words.len());
    assert!(openings.len() > 500, "{} openings", openings.len());
}
