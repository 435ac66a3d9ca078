//! The plots: what kind of story it is, and in which order things happen in it.
//!
//! A plot gets a scene, its main person and that person's main thing. It branches at random, and
//! every step changes the world through an act, so whatever branch is taken the story stays true to it.

mod doing;
mod giving;
mod seeking;

use super::scene::{Fill, Scene};
use super::words::Weather;
use super::world::{Person, Thing};

/// A plot: writes a whole story into the scene.
pub(super) type Plot = fn(&mut Scene, Person, Thing);

/// All plots; each is as likely as another.
pub(super) const PLOTS: &[Plot] = &[
    seeking::lost,
    seeking::surprise,
    seeking::moved,
    seeking::found,
    giving::gift,
    giving::trade,
    giving::delivery,
    giving::sharing,
    doing::trip,
    doing::helping,
    doing::keeping,
];

/// The first person thanks the second.
fn thanks(s: &mut Scene, a: Person, b: Person) {
    s.say(
        &[
            "\"Thank you so much,\" said {A}.",
            "{a} thanked {b} and smiled.",
            "\"You are a true friend,\" {A} said to {b}.",
            "\"Thank you, {b},\" said {A}.",
            "{a} gave {b} a big hug.",
            "{a} said thank you three times.",
        ],
        Fill::ab(a, b),
    );
}

/// A last sentence or two that leave the world as it is.
fn close(s: &mut Scene, weather: &'static Weather) {
    if s.dice.chance(25) {
        s.weather(weather);
    }
    let ending = *s.dice.pick(&[
        "It had been a good day.",
        "It was a day to remember.",
        "What a day it had been!",
        "And so the day came to an end.",
        "Everyone was tired, and it was time to rest.",
        "That night, they all slept well.",
        "It is good to have friends.",
        "Small things can make a day special.",
        "And that is the end of the story.",
        "Nobody forgot that day.",
    ]);
    s.note(ending);
}
