//! Stop texts: what ends a generation and is not shown.

/// Lets text through, but holds back what may become a stop text.
///
/// Invariant: `held` is a proper prefix of a stop text, or empty.
#[derive(Clone)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
    stopped: Option<String>,
}

impl StopFilter {
    /// A filter for some stop texts; empty ones are passed over.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new(), stopped: None }
    }

    /// The stop text that has come up.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    /// Takes new text and returns what is certain to come before any stop text.
    pub fn push(&mut self, fresh: &str) -> String {
        let mut text = std::mem::take(&mut self.held) + fresh;
        let found = self.stops.iter().filter_map(|stop| text.find(stop.as_str()).map(|start| (start, stop)));
        if let Some((start, stop)) = found.min() {
            self.stopped = Some(stop.clone());
            text.truncate(start);
            return text;
        }
        let may_begin = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&text[*at..]));
        let hold = text.char_indices().map(|(at, _)| at).find(may_begin).unwrap_or(text.len());
        self.held = text.split_off(hold);
        text
    }

    /// Takes the last of the text and returns what was held back too: it can become no stop text any more.
    pub fn end(&mut self, last: &str) -> String {
        let text = self.push(last);
        text + &std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filtered(pieces: &[&str], stops: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut filter = StopFilter::new(&stops);
        let mut out = String::new();
        for piece in pieces {
            out += &filter.push(piece);
            if filter.stopped().is_some() {
                return (out, true);
            }
        }
        let rest = filter.end("");
        (out + &rest, false)
    }

    #[test]
    fn stop_texts_never_show() {
        for (pieces, stops, expected, stopped) in [
            (&["one END two"][..], &["END"][..], "one ", true),
            (&["one E", "N", "D two"], &["END"], "one ", true),
            (&["one EN", "d"], &["END"], "one ENd", false),
            (&["one EN"], &["END"], "one EN", false),
            (&["EEN", "D"], &["END"], "E", true),
            (&["ab", "cd"], &["cd", "bcx"], "ab", true),
            (&["x\n", "\n", "y"], &["\n\n"], "x", true),
            (&["caf", "é", "!"], &["é!"], "caf", true),
            (&["all"], &[""], "all", false),
        ] {
            assert_eq!(filtered(pieces, stops), (expected.to_owned(), stopped), "{pieces:?} {stops:?}");
        }
    }

    proptest! {
        #[test]
        fn cutting_into_pieces_changes_nothing(text in "[ab]{0,20}", stop in "[ab]{1,4}", cuts in proptest::collection::vec(0usize..20, 0..6)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let expected = text.find(&stop).map_or((text.clone(), false), |at| (text[..at].to_owned(), true));
            prop_assert_eq!(filtered(&pieces, &[&stop]), expected);
        }
    }
}
