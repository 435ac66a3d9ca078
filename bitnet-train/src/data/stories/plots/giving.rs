//! Plots in which something changes hands: gifts, trades, loans, deliveries.

use super::{close, thanks};
use crate::data::stories::scene::{Fill, Scene};
use crate::data::stories::world::{Event, Feeling, Person, Thing, Whereabouts};

/// A present is brought to somebody.
pub(super) fn gift(s: &mut Scene, a: Person, t: Thing) {
    let home = s.other_place(&[]);
    let away = s.other_place(&[home]);
    let b = s.new_person();
    let weather = s.open(a, home);
    let mut boxed = None;
    if s.dice.chance(55) {
        s.owns(a, t);
    } else {
        let spot = s.spot_at(home);
        s.happen(Event::Lies { thing: t, spot });
        s.discover(a, t, spot);
    }
    let reason = *s.dice.pick(&[
        "It was {b}'s birthday, so {a} wanted to bring a present.",
        "{b} was ill and had to rest, and {a} wanted to cheer up a good friend.",
        "{b} had always wanted to {want}.",
        "{a} knew that {b} would like to {want}.",
        "{a} thought of {b}, who liked to {want}.",
    ]);
    s.say(&[reason], Fill::ab(a, b).t(t));
    s.is_elsewhere(b, away);
    if s.dice.chance(50) {
        let bag = s.new_thing(true);
        s.owns(a, bag);
        s.pack(a, t, bag);
        boxed = Some(bag);
    }
    if s.dice.chance(30) {
        s.enjoy(a);
    }
    s.go_to(a, b);
    if let Some(bag) = boxed.filter(|_| s.dice.chance(50)) {
        s.give(a, b, bag);
        s.say(&["{a} opened {u} and saw {t}.", "{a} looked inside. There was {t}."], Fill::a(b).t(t).u(bag));
    } else {
        s.give(a, b, t);
    }
    let because = format!("{} had brought a present", s.world.name(a));
    let feeling = if s.dice.chance(50) { Feeling::Happy } else { Feeling::Surprised };
    s.feel(b, feeling, &because);
    if s.dice.chance(45) {
        let u = s.new_thing(false);
        s.say(&["\"I have something for you too,\" said {A}.", "{a} wanted to give something back."], Fill::a(b));
        s.owns(b, u);
        s.give(b, a, u);
    } else {
        thanks(s, b, a);
    }
    if s.dice.chance(40) && s.world.thing_at[t] == Whereabouts::With(b) {
        let spot = s.spot_at(away);
        s.put(b, t, spot);
    }
    close(s, weather);
}

/// Two people trade, because each needs what the other has.
pub(super) fn trade(s: &mut Scene, a: Person, t: Thing) {
    let here = s.other_place(&[]);
    let there = s.other_place(&[here]);
    let b = s.new_person();
    let u = s.new_thing(false);
    let weather = s.open(a, here);
    s.owns(a, t);
    s.say(
        &[
            "But {a} wanted to {uwant}, and for that {he} needed {u1}.",
            "But today {a} wished for {u1}.",
            "What {a} really wanted was {u1}.",
        ],
        Fill::a(a).t(t).u(u),
    );
    s.is_elsewhere(b, there);
    s.owns(b, u);
    s.go_to(a, b);
    s.say(
        &[
            "\"Will you trade {u} for my {tn}?\" asked {A}.",
            "\"I would like to {uwant},\" said {A}.",
            "\"What a nice {un}!\" said {A}.",
        ],
        Fill::ab(a, b).t(t).u(u),
    );
    if s.dice.chance(80) {
        s.say(
            &[
                "\"Yes, I would love to {want},\" said {b}.",
                "{b} thought about it and nodded.",
                "\"That is a fair trade,\" said {b}.",
            ],
            Fill::ab(a, b).t(t),
        );
        s.swap(a, t, b, u);
        s.feel(a, Feeling::Happy, "the trade was fair");
        if s.dice.chance(60) {
            s.say(&["Now {a} {udid}.", "At last {a} {udid}."], Fill::a(a).u(u));
        }
    } else {
        s.say(&["But {b} shook {bhis} head.", "\"No, I need it myself,\" said {b}."], Fill::ab(a, b));
        s.feel(a, Feeling::Sad, "there was no trade");
        s.say(&["Still, {a} and {b} stayed good friends.", "\"Maybe another day,\" said {A}."], Fill::ab(a, b));
    }
    if s.dice.chance(50) {
        s.go(a, here);
        if s.world.carrier(t) == Some(a) {
            let spot = s.spot_at(here);
            s.put(a, t, spot);
        }
    }
    close(s, weather);
}

/// A thing passes from hand to hand to somebody far away.
pub(super) fn delivery(s: &mut Scene, a: Person, t: Thing) {
    let here = s.other_place(&[]);
    let there = s.other_place(&[here]);
    let b = s.new_person();
    let c = s.new_person();
    let weather = s.open(a, here);
    s.owns(a, t);
    s.is_there_too(a, b);
    s.is_elsewhere(c, there);
    s.say(
        &[
            "\"Can you bring {t} to {c}?\" {A} asked {b}.",
            "\"Please take {t} to {c},\" said {A}.",
            "{A} was too busy to leave, but {c} was waiting for {t}.",
        ],
        Fill::ab(a, b).c(c).t(t),
    );
    s.give(a, b, t);
    if s.dice.chance(40) {
        let stop = s.other_place(&[here, there]);
        s.go(b, stop);
        s.enjoy(b);
        if s.dice.chance(50) {
            s.weather(weather);
        }
    }
    s.go_to(b, c);
    if s.dice.chance(80) {
        s.give(b, c, t);
        let because = format!("{} had sent the {}", s.world.name(a), s.world.thing(t));
        s.feel(c, Feeling::Happy, &because);
        s.say(
            &["With it, {a} {did}.", "{a} {did} right away.", "\"Please thank {b} for me,\" said {A}."],
            Fill::ab(c, a).t(t),
        );
    } else {
        s.say(
            &[
                "\"I do not need it anymore,\" said {b}. \"You may have it.\"",
                "\"Please keep it,\" said {b}. So {a} kept it.",
            ],
            Fill::ab(b, c),
        );
        let because = format!("{} let {} keep the {}", s.world.name(c), s.world.name(b), s.world.thing(t));
        s.feel(b, Feeling::Surprised, &because);
    }
    if s.dice.chance(50) {
        s.go(b, here);
        s.say(&["{A} thanked {b} for the help.", "\"Well done, {b},\" said {A}."], Fill::ab(a, b));
    }
    close(s, weather);
}

/// Somebody who has two things gives one away.
pub(super) fn sharing(s: &mut Scene, a: Person, t: Thing) {
    let here = s.other_place(&[]);
    let next = s.other_place(&[here]);
    let b = s.new_person();
    let u = s.new_thing(false);
    let weather = s.open(a, here);
    s.owns(a, t);
    s.happen(Event::Owns { who: a, thing: u });
    s.say(&["{a} also had {u1}.", "{a} had {u1} too."], Fill::a(a).u(u));
    s.is_there_too(a, b);
    s.feel(b, Feeling::Sad, "there was nothing to do");
    let (given, kept) = if s.dice.chance(50) { (t, u) } else { (u, t) };
    s.say(
        &[
            "\"You can have one of my things,\" said {A}.",
            "{a} wanted to share.",
            "\"I have two things and you have none,\" said {A}.",
        ],
        Fill::a(a),
    );
    s.give(a, b, given);
    let because = format!("{} was a good friend", s.world.name(a));
    s.feel(b, Feeling::Happy, &because);
    s.go_together(a, b, next);
    s.enjoy_together(a, b);
    match s.dice.below(3) {
        0 => {
            s.say(&["\"Shall we trade?\" asked {b}.", "{b} liked the other thing even more."], Fill::ab(a, b));
            s.swap(a, kept, b, given);
        }
        1 => {
            let spot = s.spot_at(next);
            s.put(b, given, spot);
        }
        _ => {
            let spot = s.spot_at(next);
            s.hide(a, kept, spot);
        }
    }
    close(s, weather);
}
