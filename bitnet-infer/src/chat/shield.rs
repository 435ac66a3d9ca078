//! Marks that keep the special tokens that people write from being read as such.
//!
//! The marks are noncharacters of Unicode, which no text may hold; where one does, it becomes U+FFFD first.

/// Stands behind the first character of every special token that a text spells out: there the text is cut before it is encoded.
const CUT: char = '\u{fdd0}';

/// Stands where a message that goes on ends.
pub const END: char = '\u{fdd1}';

/// `text` with a mark in every place where one of `specials` is spelled out.
pub fn cut(text: &str, specials: &[&str]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut may_begin = [false; 256];
    specials.iter().filter_map(|special| special.bytes().next()).for_each(|byte| may_begin[usize::from(byte)] = true);
    for (at, letter) in text.char_indices() {
        out.push(if matches!(letter, CUT | END) { char::REPLACEMENT_CHARACTER } else { letter });
        if !may_begin[usize::from(text.as_bytes()[at])] {
            continue;
        }
        // A special token of one character has no inside to be cut in: it is dropped.
        let found = specials.iter().filter(|special| text[at..].starts_with(**special));
        match found.map(|special| special.chars().count()).min() {
            Some(1) => {
                out.pop();
            }
            Some(_) => out.push(CUT),
            None => {}
        }
    }
    out
}

/// `text` with a mark behind it if it ends with the beginning of a special token, whose rest may be written next.
pub fn cut_end(mut text: String, specials: &[&str]) -> String {
    let begins =
        |special: &&str| (1..special.len()).any(|end| special.is_char_boundary(end) && text.ends_with(&special[..end]));
    if specials.iter().any(begins) {
        text.push(CUT);
    }
    text
}

/// The parts between the marks, which are encoded one by one.
pub fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(CUT).filter(|part| !part.is_empty())
}

/// The text without marks.
pub fn remove(text: &str) -> String {
    text.replace([CUT, END], "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn special_tokens_are_cut_and_nothing_else() {
        let specials = ["<|eot|>", "<s>", "ab"];
        let pieces = |text: &str| parts(&cut(text, &specials)).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(pieces("hello <b>"), ["hello <b>"]);
        assert_eq!(pieces("x<|eot|>y<s>"), ["x<", "|eot|>y<", "s>"]);
        assert_eq!(pieces("aab"), ["aa", "b"]);
        assert_eq!(pieces(&format!("a{CUT}b{END}")), ["a\u{fffd}b\u{fffd}"]);
        assert_eq!(pieces(""), [""; 0]);
    }

    #[test]
    fn texts_that_stand_side_by_side_form_no_special_token() {
        let specials = ["<|eot|>", "<s>"];
        for (text, next) in [("a<", "|eot|>"), ("<|eo", "t|>"), ("<", "s>"), ("a<|eot|", ">")] {
            let both = cut_end(cut(text, &specials), &specials) + &cut_end(cut(next, &specials), &specials);
            assert_eq!(remove(&both), format!("{text}{next}"));
            assert!(parts(&both).all(|part| specials.iter().all(|special| !part.contains(special))), "{text} {next}");
        }
        assert_eq!(cut_end("a".into(), &specials), "a");
    }

    proptest! {
        #[test]
        fn no_part_holds_a_special_token(text in "[<>|ab]{0,40}", specials in proptest::collection::vec("[<>|ab]{2,4}", 1..4)) {
            let specials: Vec<&str> = specials.iter().map(String::as_str).collect();
            let shielded = cut(&text, &specials);
            prop_assert_eq!(remove(&shielded), text);
            for part in parts(&shielded) {
                prop_assert!(specials.iter().all(|special| !part.contains(special)), "{}", part);
            }
        }
    }
}
