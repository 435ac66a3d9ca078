//! What people do in a story: each act changes the world and is told in one of several ways.

use super::scene::{Fill, Scene};
use super::world::{Event, Feeling, Person, Place, Spot, Thing};

impl Scene {
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
        self.say(
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
            &["{a} picked up {tx}.", "{a} took {t}.", "{a} reached out and took {t}.", "{a} took {t} with {him}."],
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
                "{a} found {t} lying {spot} and took it.",
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
                "{a} gave {b} {tx}.",
                "{a} handed {t} to {b}.",
                "{a} smiled and gave {t} to {b}.",
                "{a} held out {tx}, and {b} took it.",
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
