//! Plots in which people do something together: trips, help, putting things in order.

use super::close;
use crate::data::stories::scene::{Fill, Scene};
use crate::data::stories::world::{Event, Feeling, Person, Thing};

/// Two people go to several places with a thing.
pub(super) fn trip(s: &mut Scene, a: Person, t: Thing) {
    let start = s.other_place(&[]);
    let middle = s.other_place(&[start]);
    let end = s.other_place(&[start, middle]);
    let b = s.new_person();
    let weather = s.open(a, start);
    s.owns(a, t);
    s.is_there_too(a, b);
    s.say(
        &[
            "\"Let us go on a trip,\" said {b}.",
            "\"Do you want to see {place}?\" asked {b}.",
            "They wanted to see something new.",
            "\"I would like to {act} today,\" said {b}.",
        ],
        Fill::ab(a, b).at(middle),
    );
    s.go_together(a, b, middle);
    s.enjoy_together(a, b);
    if s.dice.chance(60) {
        let u = s.new_thing(false);
        let spot = s.spot_at(middle);
        s.happen(Event::Lies { thing: u, spot });
        s.discover(b, u, spot);
    }
    match s.dice.below(3) {
        0 => {
            let spot = s.spot_at(middle);
            s.put(a, t, spot);
            s.say(&["{a} did not want to carry it any further.", "It was too much to carry."], Fill::a(a));
        }
        1 => s.give(a, b, t),
        _ => s.weather(weather),
    }
    s.go_together(a, b, end);
    s.enjoy_together(a, b);
    if s.world.carrier(t) == Some(a) && s.dice.chance(50) {
        let spot = s.spot_at(end);
        s.put(a, t, spot);
    }
    let because =
        if s.dice.chance(50) { "the trip had been fun".to_string() } else { "there was so much to see".to_string() };
    s.feel(a, Feeling::Happy, &because);
    if s.dice.chance(35) {
        s.go(b, start);
        s.say(&["{A} stayed {at}."], Fill::a(a).at(end));
    }
    close(s, weather);
}

/// Somebody needs a thing for some work, and a friend brings it.
pub(super) fn helping(s: &mut Scene, a: Person, t: Thing) {
    let here = s.other_place(&[]);
    let store = s.other_place(&[here]);
    let b = s.new_person();
    let weather = s.open(a, here);
    s.is_there_too(a, b);
    s.say(
        &[
            "{b} wanted to {want} and needed {t1} for it.",
            "\"I want to {want}, but I have no {tkind},\" said {b}.",
            "\"How can I {want} without {t1}?\" asked {b}.",
        ],
        Fill::ab(a, b).t(t),
    );
    let spot = s.spot_at(store);
    s.happen(Event::Lies { thing: t, spot });
    s.say(
        &[
            "{a} knew that there was one {at}.",
            "\"I know where to find one,\" said {A}.",
            "\"Wait here, I will get one,\" said {A}.",
        ],
        Fill::a(a).at(store),
    );
    s.go(a, store);
    if s.dice.chance(45) {
        let wrong = s.other_spot(spot);
        s.look(a, t, wrong);
    }
    s.find(a, t, spot);
    if s.dice.chance(35) {
        s.enjoy(a);
    }
    s.go_to(a, b);
    s.give(a, b, t);
    s.say(&["Now {b} {did}.", "With it, {b} {did}.", "{b} {did} while {A} watched."], Fill::ab(a, b).t(t));
    let because = format!("{} had helped", s.world.name(a));
    s.feel(b, Feeling::Thankful, &because);
    match s.dice.below(3) {
        0 => s.give_back(b, a, t),
        1 => {
            let spot = s.spot_at(here);
            s.put(b, t, spot);
        }
        _ => {
            let u = s.new_thing(false);
            s.owns(b, u);
            s.give(b, a, u);
        }
    }
    let because = format!("{} could {}", s.world.name(b), s.world.noun(t).want);
    s.feel(a, Feeling::Proud, &because);
    close(s, weather);
}

/// Somebody puts things in order, each to its own place.
pub(super) fn keeping(s: &mut Scene, a: Person, t: Thing) {
    let here = s.other_place(&[]);
    let there = s.other_place(&[here]);
    let weather = s.open(a, here);
    let u = s.new_thing(false);
    let bag = s.new_thing(true);
    let spot = s.spot_at(here);
    s.happen(Event::Lies { thing: u, spot });
    s.owns(a, t);
    s.discover(a, u, spot);
    s.owns(a, bag);
    let packed = if s.dice.chance(50) { t } else { u };
    s.pack(a, packed, bag);
    s.go(a, there);
    let b = s.new_person();
    s.is_there_too(a, b);
    s.say(
        &[
            "\"What are you carrying?\" asked {b}.",
            "\"You have so many things!\" said {b}.",
            "{b} looked at {A} and laughed.",
        ],
        Fill::ab(a, b),
    );
    match s.dice.below(3) {
        0 => {
            s.give(a, b, bag);
            let because = format!("the {} was very heavy", s.world.noun(bag).noun);
            s.feel(a, Feeling::Glad, &because);
        }
        1 => {
            let spot = s.spot_at(there);
            s.put(a, bag, spot);
            s.enjoy_together(a, b);
        }
        _ => {
            let spot = s.spot_at(there);
            s.put(a, t, spot);
            s.give(a, b, u);
            let because = format!("{} had shared", s.world.name(a));
            s.feel(b, Feeling::Thankful, &because);
        }
    }
    if s.dice.chance(40) {
        s.go(b, here);
    }
    close(s, weather);
}
