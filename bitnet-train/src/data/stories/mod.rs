//! The built-in source: short English stories told by simulating a small world.
//!
//! A plot moves people and things about; every step is checked against the world and told in one of
//! several ways, so what a story says is consistent and can be asked about. A story is a
//! function of (seed, split, index) alone.
//!
//! # Held-out combinations
//!
//! A story is about a main person and that person's main thing. One pair (name, noun) in
//! twenty, chosen by a fixed hash, is held out: [`Split::Train`] never tells of it, and
//! [`Split::Validation`] tells of nothing else. So no validation story occurs in the train
//! split, and the validation loss measures what a model makes of pairs it has not seen.

mod acts;
mod dice;
mod plots;
mod questions;
mod scene;
mod staging;
mod words;
mod world;

pub use questions::{Qa, QaKind};

use serde::{Deserialize, Serialize};

use dice::Dice;
use scene::Scene;
use words::{Class, NAMES, NOUNS};
use world::World;

/// Changes whenever the same seed gives other stories; part of the key of every cached shard.
pub const GENERATOR_VERSION: u32 = 1;

/// Which half of the stories an index counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Stories for training.
    Train,
    /// Stories of held-out pairs of main person and main thing.
    Validation,
}

/// A story and what can be asked about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// The story itself, 60 to 180 words of ASCII.
    pub text: String,
    /// Questions that the story answers, in random order.
    pub questions: Vec<Qa>,
    /// How many of them, from the first, stand behind the story in the training text.
    pub asked: usize,
}

impl Story {
    /// The training text: the story, then its asked questions as `Question: ...` and `Answer: ...` lines.
    pub fn document(&self) -> String {
        let mut out = self.text.clone();
        for (place, qa) in self.questions[..self.asked].iter().enumerate() {
            out.push_str(if place == 0 { "\n\n" } else { "\n" });
            out.push_str(&format!("Question: {}\nAnswer: {}", qa.question, qa.answer));
        }
        out.push('\n');
        out
    }
}

/// The story of an index under a seed.
pub fn story(seed: u64, split: Split, index: u64) -> Story {
    tell(seed, split, index).0
}

/// Whether a pair of main person and main thing's noun is kept for validation.
pub fn is_held_out(name: &str, noun: &str) -> bool {
    // FNV-1a: stable over versions of Rust, which the standard hasher is not.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in name.bytes().chain([b'/']).chain(noun.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash ^ (hash >> 32)).is_multiple_of(HELD_OUT_ONE_IN)
}

/// The story and the world at its end.
fn tell(seed: u64, split: Split, index: u64) -> (Story, World) {
    let mut dice = Dice::new(seed, split as u64, index);
    loop {
        let mut scene = Scene::new(dice);
        let (name, noun) = main_pair(&mut scene.dice, split);
        let a = scene.world.add_person(name);
        let t = scene.add_prop(noun);
        let plot = *scene.dice.pick(plots::PLOTS);
        plot(&mut scene, a, t);
        debug_assert!(scene.fault.is_none(), "{:?}\n{}", scene.fault, scene.text);
        let words = scene.text.split_whitespace().count();
        if scene.fault.is_some() || !(MIN_WORDS..=MAX_WORDS).contains(&words) {
            dice = scene.dice;
            continue;
        }
        let questions = shuffled(questions::questions(&scene.world), &mut scene.dice);
        let asked = if scene.dice.chance(PERCENT_ASKED) { 1 + scene.dice.below(MAX_ASKED) } else { 0 };
        let asked = asked.min(questions.len());
        return (Story { text: scene.text, questions, asked }, scene.world);
    }
}

fn main_pair(dice: &mut Dice, split: Split) -> (usize, usize) {
    loop {
        let (name, noun) = (dice.below(NAMES.len()), dice.below(NOUNS.len()));
        let held_out = is_held_out(NAMES[name].name, NOUNS[noun].noun);
        if NOUNS[noun].class != Class::Box && held_out == (split == Split::Validation) {
            return (name, noun);
        }
    }
}

/// A random order in which one kind of question does not crowd out the others: each kind's
/// first question comes before any kind's second.
fn shuffled(mut questions: Vec<Qa>, dice: &mut Dice) -> Vec<Qa> {
    for last in (1..questions.len()).rev() {
        questions.swap(last, dice.below(last + 1));
    }
    let mut rounds: Vec<(usize, Qa)> = Vec::with_capacity(questions.len());
    for qa in questions {
        let round = rounds.iter().filter(|(_, earlier)| earlier.kind == qa.kind).count();
        rounds.push((round, qa));
    }
    rounds.sort_by_key(|(round, _)| *round);
    rounds.into_iter().map(|(_, qa)| qa).collect()
}

const HELD_OUT_ONE_IN: u64 = 20;
const MIN_WORDS: usize = 60;
const MAX_WORDS: usize = 180;
const PERCENT_ASKED: usize = 75;
const MAX_ASKED: usize = 4;

#[cfg(test)]
mod tests;
