//! Plots in which something is missing: lost, hidden, moved or found.

use super::{close, thanks};
use crate::data::stories::scene::{Fill, Scene};
use crate::data::stories::world::{Event, Feeling, Person, Spot, Thing};

/// A thing is lost, missed, looked for and found.
pub(super) fn lost(s: &mut Scene, a: Person, t: Thing) {
    let first = s.other_place(&[]);
    let second = s.other_place(&[first]);
    let weather = s.open(a, first);
    s.owns(a, t);
    s.enjoy(a);
    let spot = s.spot_at(first);
    s.lose(a, t, spot);
    let b_was_there = s.dice.chance(35);
    let helper = (b_was_there || s.dice.chance(50)).then(|| s.new_person());
    if let Some(b) = helper.filter(|_| b_was_there) {
        s.is_there_too(a, b);
    }
    s.go(a, second);
    if let Some(b) = helper.filter(|_| !b_was_there) {
        s.is_there_too(a, b);
    }
    s.say(
        &[
            "{a} wanted to {want}, but {t} was gone.",
            "{a} reached for {t}, but it was gone.",
            "Suddenly {a} saw that {t} was missing.",
            "\"Oh no, where is my {tn}?\" cried {A}.",
        ],
        Fill::a(a).t(t),
    );
    let gone = format!("the {} was gone", s.world.thing(t));
    let feeling = if s.dice.chance(50) { Feeling::Sad } else { Feeling::Worried };
    s.feel(a, feeling, &gone);
    if s.dice.chance(40) {
        let wrong = s.spot_at(second);
        s.look(a, t, wrong);
    }
    match helper {
        Some(b) if b_was_there => {
            s.say(&["But {b} had seen {t} {at}.", "{b} was still {at} and saw {t}."], Fill::ab(a, b).t(t).at(first));
            s.find(b, t, spot);
            s.go_to(b, a);
            s.give_back(b, a, t);
            let because = format!("{} had brought the {}", s.world.name(b), s.world.thing(t));
            s.feel(a, Feeling::Thankful, &because);
            thanks(s, a, b);
        }
        Some(b) => search_together(s, a, b, t, spot),
        None => search_alone(s, a, t, spot),
    }
    close(s, weather);
}

fn search_together(s: &mut Scene, a: Person, b: Person, t: Thing, spot: Spot) {
    s.say(
        &[
            "\"I will help you look,\" said {b}.",
            "\"Do not worry, we will find it,\" said {b}.",
            "{b} said, \"Let us look for it together.\"",
        ],
        Fill::ab(a, b),
    );
    s.go_together(a, b, spot.place);
    if s.dice.chance(40) {
        let wrong = s.other_spot(spot);
        s.look(a, t, wrong);
    }
    let finder = if s.dice.chance(50) { b } else { a };
    s.find(finder, t, spot);
    if finder == b {
        s.give_back(b, a, t);
    }
    let because = format!("the {} was not lost anymore", s.world.thing(t));
    s.feel(a, Feeling::Happy, &because);
    thanks(s, a, b);
}

fn search_alone(s: &mut Scene, a: Person, t: Thing, spot: Spot) {
    s.say(
        &[
            "{a} thought hard and remembered {place}.",
            "{a} tried to remember the whole day.",
            "{a} turned around at once.",
        ],
        Fill::a(a).at(spot.place),
    );
    s.go(a, spot.place);
    if s.dice.chance(50) {
        let wrong = s.other_spot(spot);
        s.look(a, t, wrong);
    }
    s.find(a, t, spot);
    let because = format!("the {} was not lost anymore", s.world.thing(t));
    s.feel(a, Feeling::Glad, &because);
    s.say(
        &["{a} promised to be more careful.", "{a} held {t} tight.", "\"I will never lose it again,\" said {A}."],
        Fill::a(a).t(t),
    );
}

/// A thing is hidden as a surprise for somebody.
pub(super) fn surprise(s: &mut Scene, a: Person, t: Thing) {
    let here = s.other_place(&[]);
    let there = s.other_place(&[here]);
    let b = s.new_person();
    let weather = s.open(a, here);
    s.owns(a, t);
    s.say(
        &[
            "{a} wanted to surprise {b}.",
            "{a} had a plan. It was a surprise for {b}.",
            "{a} smiled, because it was meant for {b}.",
        ],
        Fill::ab(a, b),
    );
    let spot = s.spot_at(here);
    s.hide(a, t, spot);
    s.is_elsewhere(b, there);
    s.go_to(a, b);
    s.say(
        &[
            "\"Come with me,\" said {A}.",
            "\"I want to show you something,\" said {A}.",
            "\"There is a surprise for you,\" said {A}.",
        ],
        Fill::a(a),
    );
    s.go_together(a, b, here);
    if s.dice.chance(60) {
        let wrong = s.other_spot(spot);
        s.say(&["\"Look around,\" said {A}.", "\"Can you find it?\" asked {A}."], Fill::a(a));
        s.happen(Event::Look { who: b, thing: t, spot: wrong });
        s.say(
            &["First {a} looked {spot}, but nothing was there.", "{a} looked {spot} first and found nothing."],
            Fill::a(b).spot(wrong),
        );
    }
    s.find(b, t, spot);
    let because = format!("the {} was a present", s.world.thing(t));
    s.feel(b, Feeling::Surprised, &because);
    if s.dice.chance(50) {
        s.say(&["{a} {did} right away.", "Then {a} {did}."], Fill::a(b).t(t));
    }
    thanks(s, b, a);
    if s.dice.chance(30) {
        s.go(a, there);
    }
    close(s, weather);
}

/// A thing is moved while its owner is away.
pub(super) fn moved(s: &mut Scene, a: Person, t: Thing) {
    let here = s.other_place(&[]);
    let there = s.other_place(&[here]);
    let b = s.new_person();
    let weather = s.open(a, here);
    s.owns(a, t);
    let first = s.spot_at(here);
    s.put(a, t, first);
    s.is_there_too(a, b);
    s.go(a, there);
    s.enjoy(a);
    s.say(
        &["While {A} was away, {b} saw {t}.", "{b} was alone with {t}.", "{b} was still {at} and needed some room."],
        Fill::ab(a, b).t(t).at(here),
    );
    let taken_along = s.dice.chance(25);
    s.take(b, t);
    let second = s.other_spot(first);
    if !taken_along {
        s.put(b, t, second);
    }
    let leaves = s.dice.chance(30) && !taken_along;
    if leaves {
        let far = s.other_place(&[here, there]);
        s.go(b, far);
    }
    s.happen(Event::Go { who: a, to: here });
    s.say(&["Later, {a} came back {to}.", "After an hour, {a} came back {to}."], Fill::a(a).at(here));
    s.look(a, t, first);
    s.feel(a, Feeling::Worried, &format!("the {} was not there", s.world.thing(t)));
    if taken_along {
        s.say(&["\"I have it here,\" said {b}.", "\"I kept it safe for you,\" said {b}."], Fill::ab(a, b));
        if s.dice.chance(70) {
            s.give_back(b, a, t);
        } else {
            s.say(&["\"You may keep it today,\" said {A}.", "\"Good, please keep it for me,\" said {A}."], Fill::a(a));
        }
    } else {
        if !leaves {
            s.say(&["\"I moved it,\" said {b}.", "{b} told {A} where to look."], Fill::ab(a, b));
        }
        if s.dice.chance(75) {
            s.find(a, t, second);
        } else {
            s.say(
                &["{a} laughed and left it where it was.", "\"It can stay where it is,\" said {A} in the end."],
                Fill::a(a),
            );
        }
    }
    let because = format!("the {} was safe", s.world.thing(t));
    s.feel(a, Feeling::Glad, &because);
    close(s, weather);
}

/// A found thing goes back to whoever lost it.
pub(super) fn found(s: &mut Scene, a: Person, t: Thing) {
    let here = s.other_place(&[]);
    let there = s.other_place(&[here]);
    let b = s.new_person();
    let weather = s.open(a, here);
    let spot = s.spot_at(here);
    s.happen(Event::Lies { thing: t, spot });
    s.enjoy(a);
    s.discover(a, t, spot);
    s.say(
        &[
            "\"Who lost this?\" asked {A}.",
            "{a} wondered whose it was.",
            "Somebody must be looking for it, {a} thought.",
        ],
        Fill::a(a).t(t),
    );
    if s.dice.chance(50) {
        let c = s.new_person();
        s.is_there_too(a, c);
        s.say(
            &[
                "\"Is this yours?\" asked {A}. \"No, but ask {c},\" said {b}.",
                "\"It is not mine,\" said {b}. \"I think it belongs to {c}.\"",
            ],
            Fill::ab(a, c).c(b),
        );
    } else {
        s.say(
            &["Then {a} remembered that {b} had {t1}.", "There was a name on it, and the name was {b}."],
            Fill::ab(a, b).t(t),
        );
    }
    s.is_elsewhere(b, there);
    s.go_to(a, b);
    s.give_back(a, b, t);
    let because = format!("{} had found the {}", s.world.name(a), s.world.thing(t));
    s.feel(b, Feeling::Happy, &because);
    thanks(s, b, a);
    if s.dice.chance(55) {
        let u = s.new_thing(false);
        s.owns(b, u);
        s.give(b, a, u);
        s.feel(a, Feeling::Surprised, "it was a fine reward");
    }
    close(s, weather);
}
