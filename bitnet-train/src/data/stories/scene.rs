//! Telling while simulating: a plot calls [`Scene`], which changes the world and writes the sentences.
//!
//! A sentence is a template with places to fill: `{a}` the acting person (a pronoun where nobody
//! else could be meant), `{A}` the same by name, `{b}` and `{c}` others by name, `{he} {him} {his}`
//! the acting person's pronouns, `{bhe} {bhim} {bhis}` the second person's, `{ab}` both as subject
//! (`They` where clear), `{t} {u}` things (`the red ball`, `the ball`, `it`), `{tx}` the same but never `it`, `{t1} {u1}` with `a` or `an`,
//! `{tn} {un}` bare (`red ball`), `{tkind}` the noun alone, `{at}` and `{to}` a place with its preposition, `{spot}` a spot.
//!
//! Templates in which a pronoun could mean either of two people are left out when both are a she or both a he.

use super::dice::Dice;
use super::words::NAMES;
use super::world::{Event, Person, Place, Spot, Thing, World};

/// What fills the places of a template.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fill {
    pub a: Option<Person>,
    pub b: Option<Person>,
    pub c: Option<Person>,
    pub t: Option<Thing>,
    pub u: Option<Thing>,
    pub place: Option<Place>,
    pub spot: Option<Spot>,
}

impl Fill {
    /// A sentence about one person.
    pub(super) fn a(a: Person) -> Fill {
        Fill { a: Some(a), ..Fill::default() }
    }

    /// A sentence about two people.
    pub(super) fn ab(a: Person, b: Person) -> Fill {
        Fill { a: Some(a), b: Some(b), ..Fill::default() }
    }

    /// Adds a third person.
    pub(super) fn c(self, c: Person) -> Fill {
        Fill { c: Some(c), ..self }
    }

    /// Adds a thing.
    pub(super) fn t(self, t: Thing) -> Fill {
        Fill { t: Some(t), ..self }
    }

    /// Adds a second thing.
    pub(super) fn u(self, u: Thing) -> Fill {
        Fill { u: Some(u), ..self }
    }

    /// Adds a place.
    pub(super) fn at(self, place: Place) -> Fill {
        Fill { place: Some(place), ..self }
    }

    /// Adds a spot, and its place.
    pub(super) fn spot(self, spot: Spot) -> Fill {
        Fill { spot: Some(spot), place: Some(spot.place), ..self }
    }
}

/// What the last sentence spoke of, which decides what a pronoun would mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Said {
    subject: Option<Person>,
    pair: Option<(Person, Person)>,
    people: Vec<Person>,
    things: Vec<Thing>,
    other_nouns: bool,
    pronouns_in_a_row: usize,
}

/// A world and the text that tells it.
#[derive(Debug)]
pub(super) struct Scene {
    pub world: World,
    pub dice: Dice,
    pub text: String,
    /// The first contradiction, if a plot made one: a bug that the tests look for.
    pub fault: Option<String>,
    said: Said,
    introduced: Vec<Thing>,
}

impl Scene {
    /// An empty world and no text.
    pub(super) fn new(dice: Dice) -> Scene {
        Scene {
            world: World::default(),
            dice,
            text: String::new(),
            fault: None,
            said: Said::default(),
            introduced: Vec::new(),
        }
    }

    /// Applies an event to the world.
    pub(super) fn happen(&mut self, event: Event) {
        if let Err(fault) = self.world.apply(event) {
            self.fault.get_or_insert(fault);
        }
    }

    /// Writes one of the templates.
    pub(super) fn say(&mut self, templates: &[&str], fill: Fill) {
        let fitting: Vec<&str> = templates.iter().copied().filter(|template| self.is_clear(template, fill)).collect();
        let Some(&template) = (!fitting.is_empty()).then(|| self.dice.pick(&fitting)) else {
            self.fault.get_or_insert_with(|| format!("no clear template among {templates:?}"));
            return;
        };
        let sentence = self.expand(template, fill);
        self.push(&sentence);
    }

    /// Writes one of the templates, at times with a connective in front: for what happens next.
    pub(super) fn then(&mut self, templates: &[&str], fill: Fill) {
        if !self.dice.chance(22) {
            return self.say(templates, fill);
        }
        let lead = *self.dice.pick(LEADS);
        let led: Vec<String> = templates
            .iter()
            .map(|template| {
                if template.starts_with("{a}") || template.starts_with("{b}") || template.starts_with("{A}") {
                    format!("{lead}{template}")
                } else {
                    (*template).to_string()
                }
            })
            .collect();
        let led: Vec<&str> = led.iter().map(String::as_str).collect();
        self.say(&led, fill);
    }

    /// Writes one of the templates, after which no pronoun is clear.
    pub(super) fn say_by_name(&mut self, templates: &[&str], fill: Fill) {
        self.say(templates, fill);
        self.said = Said::default();
    }

    /// Writes a sentence that speaks of nobody.
    pub(super) fn note(&mut self, sentence: &str) {
        self.push(sentence);
        self.said = Said::default();
    }

    fn push(&mut self, sentence: &str) {
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push(' ');
        }
        self.text.push_str(&capitalised(sentence));
    }

    /// Whether every pronoun of the template can mean only one person.
    fn is_clear(&self, template: &str, fill: Fill) -> bool {
        let female = |who: Option<Person>| who.map(|who| self.world.female(who));
        let others: Vec<Option<bool>> = [("{b}", fill.b), ("{c}", fill.c)]
            .iter()
            .filter(|(mark, _)| template.contains(mark))
            .map(|(_, who)| female(*who))
            .collect();
        let speaks_of_b_by_pronoun = template.contains("{bh");
        let speaks_of_a_by_pronoun =
            template.contains("{he}") || template.contains("{him}") || template.contains("{his}");
        let a_and_b_differ = female(fill.a) != female(fill.b);
        if speaks_of_b_by_pronoun && !a_and_b_differ {
            return false;
        }
        if speaks_of_b_by_pronoun && template.contains("{c}") && female(fill.c) == female(fill.b) {
            return false;
        }
        !(speaks_of_a_by_pronoun && others.contains(&female(fill.a)))
    }

    fn expand(&mut self, template: &str, fill: Fill) -> String {
        let before = std::mem::take(&mut self.said);
        let mut now = Said::default();
        let mut out = String::with_capacity(template.len() + 32);
        let mut rest = template;
        while let Some(open) = rest.find('{') {
            out.push_str(&rest[..open]);
            let close = rest[open..].find('}').map_or(rest.len(), |at| open + at);
            let mark = &rest[open + 1..close];
            rest = rest.get(close + 1..).unwrap_or("");
            match self.word(mark, template, fill, &before, &mut now) {
                Some(word) => out.push_str(&word),
                None => {
                    self.fault.get_or_insert_with(|| format!("nothing for {{{mark}}} in `{template}`"));
                }
            }
        }
        out.push_str(rest);
        self.said = now;
        out
    }

    fn word(&mut self, mark: &str, template: &str, fill: Fill, before: &Said, now: &mut Said) -> Option<String> {
        let word = match mark {
            "a" => self.subject(fill.a?, template, before, now),
            "A" => self.person(fill.a?, true, now),
            "b" => self.person(fill.b?, false, now),
            "c" => self.person(fill.c?, false, now),
            "ab" => self.pair(fill.a?, fill.b?, before, now),
            "he" => self.pronoun(fill.a?, "she", "he"),
            "him" => self.pronoun(fill.a?, "her", "him"),
            "his" => self.pronoun(fill.a?, "her", "his"),
            "bhe" => self.pronoun(fill.b?, "she", "he"),
            "bhim" => self.pronoun(fill.b?, "her", "him"),
            "bhis" => self.pronoun(fill.b?, "her", "his"),
            "t" => self.the_thing(fill.t?, before, now),
            "u" => self.the_thing(fill.u?, before, now),
            "tx" => self.the_thing_by_name(fill.t?, now),
            "t1" => with_article(&self.named(fill.t?, now)),
            "u1" => with_article(&self.named(fill.u?, now)),
            "tn" => self.named(fill.t?, now),
            "un" => self.named(fill.u?, now),
            "tkind" => self.world.noun(fill.t?).noun.to_string(),
            "want" => self.world.noun(fill.t?).want.to_string(),
            "did" => self.world.noun(fill.t?).did.to_string(),
            "uwant" => self.world.noun(fill.u?).want.to_string(),
            "udid" => self.world.noun(fill.u?).did.to_string(),
            "at" => World::at_place(fill.place?),
            "to" => format!("to the {}", World::place(fill.place?).noun),
            "place" => format!("the {}", World::place(fill.place?).noun),
            "act" => World::place(fill.place?).act.to_string(),
            "acted" => World::place(fill.place?).acted.to_string(),
            "spot" => World::spot(fill.spot?).to_string(),
            _ => return None,
        };
        if matches!(mark, "at" | "to" | "place" | "spot" | "want" | "did" | "uwant" | "udid" | "act" | "acted") {
            now.other_nouns = true;
        }
        Some(word)
    }

    fn subject(&mut self, who: Person, template: &str, before: &Said, now: &mut Said) -> String {
        let rival = |other: &Person| *other != who && self.world.female(*other) == self.world.female(who);
        // Within a template that names another of the same kind, the pronoun would be read with that name.
        let clear = before.subject == Some(who)
            && !before.people.iter().any(rival)
            && !now.people.iter().any(rival)
            && before.pronouns_in_a_row < MAX_PRONOUNS
            && !template.contains("said {a}");
        if clear && self.dice.chance(75) {
            now.subject = Some(who);
            now.people.push(who);
            now.pronouns_in_a_row = before.pronouns_in_a_row + 1;
            return self.pronoun(who, "she", "he");
        }
        self.person(who, true, now)
    }

    fn person(&self, who: Person, subject: bool, now: &mut Said) -> String {
        now.people.push(who);
        if subject {
            now.subject = Some(who);
        }
        NAMES[self.world.cast[who].name].name.to_string()
    }

    fn pair(&mut self, a: Person, b: Person, before: &Said, now: &mut Said) -> String {
        now.people.extend([a, b]);
        now.pair = Some((a, b));
        if before.pair == Some((a, b)) && self.dice.chance(80) {
            return "they".to_string();
        }
        format!("{} and {}", self.world.name(a), self.world.name(b))
    }

    fn pronoun(&self, who: Person, she: &str, he: &str) -> String {
        if self.world.female(who) { she } else { he }.to_string()
    }

    fn named(&mut self, thing: Thing, now: &mut Said) -> String {
        now.things.push(thing);
        self.introduced.push(thing);
        self.world.thing(thing)
    }

    fn the_thing(&mut self, thing: Thing, before: &Said, now: &mut Said) -> String {
        let alone = before.things.iter().all(|&other| other == thing) && !before.things.is_empty();
        if alone && !before.other_nouns && now.things.is_empty() && !now.other_nouns && self.dice.chance(60) {
            now.things.push(thing);
            return "it".to_string();
        }
        self.the_thing_by_name(thing, now)
    }

    fn the_thing_by_name(&mut self, thing: Thing, now: &mut Said) -> String {
        // The first time a thing comes up, it comes with its adjective, so that it can be asked about.
        let known = self.introduced.contains(&thing);
        let full = self.named(thing, now);
        if known && self.dice.chance(45) {
            return format!("the {}", self.world.noun(thing).noun);
        }
        format!("the {full}")
    }
}

/// `a` or `an` in front.
pub(super) fn with_article(words: &str) -> String {
    let article = if words.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {words}")
}

/// The first letter of every sentence as a capital, also after an opening quote.
pub(super) fn capitalised(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut start = true;
    let mut before_last = ' ';
    let mut previous = ' ';
    for letter in text.chars() {
        if start && letter.is_ascii_alphabetic() {
            out.push(letter.to_ascii_uppercase());
            start = false;
        } else {
            out.push(letter);
        }
        // A quotation that ends in `?` or `!` may be followed by who said it; one that ends in `.` is a sentence.
        let ended = matches!(previous, '.' | '?' | '!') || (previous == '"' && before_last == '.');
        if letter == ' ' && ended {
            start = true;
        }
        before_last = previous;
        previous = letter;
    }
    out
}

/// Openings for what happens next.
const LEADS: &[&str] =
    &["Then ", "Soon ", "After that, ", "A little later, ", "Before long, ", "Later, ", "Not long after, "];

/// After so many pronouns in a row the name is said again.
const MAX_PRONOUNS: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn articles_follow_the_sound() {
        for (words, expected) in [
            ("orange kite", "an orange kite"),
            ("old bag", "an old bag"),
            ("red ball", "a red ball"),
            ("umbrella", "an umbrella"),
        ] {
            assert_eq!(with_article(words), expected);
        }
    }

    #[test]
    fn sentences_start_with_capitals() {
        assert_eq!(capitalised("he ran. she ran! \"where?\" he asked."), "He ran. She ran! \"Where?\" he asked.");
        assert_eq!(capitalised("\"thank you,\" said Tom. \"it is fine.\""), "\"Thank you,\" said Tom. \"It is fine.\"");
    }
}
