//! What transformers' templates may say and the engine's language lacks, said in words that the engine knows.
//!
//! `{% generation %}` marks what a training loss counts. It writes nothing, and what is set within stays within: a `with` block.
//! `'%s' % name` formats a text. The engine's `%` takes numbers alone, so each `%` becomes a filter that takes both:
//!
//! ```text
//! a * f % b.c | trim + d      ->      (a * f) | percent(b.c | trim) + d
//! ```
//!
//! What stands left of it reaches back to the next operator that binds less, what stands right of it is one operand with its
//! filters, as in Jinja's grammar. Lines stay where they are, so that messages name the right one.

/// The filter that stands for `%`. No template can spell it by chance.
pub const PERCENT: &str = "bitnet_percent";

/// `source` in the engine's words. What the engine will refuse anyway is left to it.
///
/// # Errors
/// If `generation` and `endgeneration` do not match.
pub fn translated(source: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut open) = (source, 0usize);
    while let Some(start) = rest.find('{') {
        let (text, tag) = rest.split_at(start);
        out.push_str(text);
        let taken = match tag.get(..2) {
            Some("{#") => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(kind @ ("{{" | "{%")) => {
                let Some((tokens, length)) = tokens(tag, if kind == "{{" { "}}" } else { "%}" }) else { break };
                let word = |name: &str| kind == "{%" && matches!(&tokens[..], [token] if token.text == name);
                if word("raw") {
                    raw_end(tag, length)
                } else {
                    let instead = if word("generation") {
                        open += 1;
                        Some("with")
                    } else if word("endgeneration") {
                        open = open.checked_sub(1).ok_or(UNMATCHED)?;
                        Some("endwith")
                    } else {
                        None
                    };
                    if instead.is_none() && !tokens.iter().any(|token| token.text == "%") {
                        out.push_str(&tag[..length]);
                    } else {
                        write_tag(&mut out, &tag[..length], &tokens, instead);
                    }
                    rest = &tag[length..];
                    continue;
                }
            }
            _ => 1,
        };
        out.push_str(&tag[..taken]);
        rest = &tag[taken..];
    }
    out.push_str(rest);
    if open == 0 { Ok(out) } else { Err(UNMATCHED) }
}

const UNMATCHED: &str = "the tags `generation` and `endgeneration` do not match";

/// Where a `raw` block that begins with a tag of `length` bytes ends.
fn raw_end(tag: &str, length: usize) -> usize {
    for (at, _) in tag[length..].match_indices("{%") {
        let inner = tag[length + at + 2..].trim_start_matches(['-', '+']).trim_start();
        if inner
            .strip_prefix("endraw")
            .is_some_and(|after| after.trim_start().trim_start_matches(['-', '+']).starts_with("%}"))
        {
            return length + at;
        }
    }
    tag.len()
}

/// A word, a literal, a bracket or an operator.
#[derive(Clone, Copy)]
struct Token<'s> {
    /// White space in front of it.
    before: &'s str,
    text: &'s str,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Word,
    Literal,
    Open,
    Close,
    Operator,
}

/// The tokens of a tag and its length in bytes; `None` if it has no end.
fn tokens<'s>(tag: &'s str, end: &str) -> Option<(Vec<Token<'s>>, usize)> {
    let mut at = 2 + usize::from(tag[2..].starts_with(['-', '+']));
    let (mut found, mut depth) = (Vec::new(), 0usize);
    loop {
        let here = &tag[at..];
        let text = here.trim_start();
        let before = &here[..here.len() - text.len()];
        let signed = text.strip_prefix(['-', '+']).is_some_and(|text| text.starts_with(end));
        if depth == 0 && (signed || text.starts_with(end)) {
            return Some((found, tag.len() - text.len() + end.len() + usize::from(signed)));
        }
        let first = text.chars().next()?;
        let (length, kind) = match first {
            '(' | '[' | '{' => (1, Kind::Open),
            ')' | ']' | '}' => (1, Kind::Close),
            '"' | '\'' => (literal_length(text, first)?, Kind::Literal),
            '0'..='9' => (number_length(text), Kind::Literal),
            _ if first.is_alphabetic() || first == '_' => {
                let is_end = |letter: char| !letter.is_alphanumeric() && letter != '_';
                (text.find(is_end).unwrap_or(text.len()), Kind::Word)
            }
            _ => {
                let two = ["**", "//", "==", "!=", "<=", ">="].iter().any(|operator| text.starts_with(operator));
                (if two { 2 } else { first.len_utf8() }, Kind::Operator)
            }
        };
        match kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.checked_sub(1)?,
            Kind::Word | Kind::Literal | Kind::Operator => {}
        }
        found.push(Token { before, text: &text[..length], kind });
        at = tag.len() - text.len() + length;
    }
}

fn literal_length(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if letter == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let exponent = matches!(byte, b'e' | b'E')
            && (digit(at + 1) || matches!(bytes.get(at + 1), Some(b'-' | b'+')) && digit(at + 2));
        match byte {
            b'0'..=b'9' | b'_' => at += 1,
            b'.' if digit(at + 1) => at += 1,
            _ if exponent => at += 2,
            _ if byte.is_ascii_alphanumeric() => at += 1,
            _ => break,
        }
    }
    at
}

/// Writes a tag with its `%` replaced, and its one word by `instead`.
fn write_tag(out: &mut String, tag: &str, tokens: &[Token], instead: Option<&str>) {
    let first = 2 + usize::from(tag[2..].starts_with(['-', '+']));
    out.push_str(&tag[..first]);
    match (instead, tokens) {
        (Some(word), [token]) => {
            out.push_str(token.before);
            out.push_str(word);
        }
        _ => {
            let mut tokens = Tokens { all: tokens, at: 0 };
            tokens.sequence(out);
        }
    }
    // What follows the last token, which has an address within the tag.
    let written =
        tokens.last().map_or(first, |token| token.text.as_ptr().addr() - tag.as_ptr().addr() + token.text.len());
    out.push_str(&tag[written..]);
}

struct Tokens<'t, 's> {
    all: &'t [Token<'s>],
    at: usize,
}

impl<'s> Tokens<'_, 's> {
    fn peek(&self) -> Option<Token<'s>> {
        self.all.get(self.at).copied()
    }

    fn push(&mut self, out: &mut String) {
        if let Some(token) = self.peek() {
            out.push_str(token.before);
            out.push_str(token.text);
            self.at += 1;
        }
    }

    /// Expressions up to the end, or to a closing bracket.
    fn sequence(&mut self, out: &mut String) {
        // Where the operand of `*`, `/` and `%` begins, and whether one is expected.
        let (mut start, mut expected) = (out.len(), true);
        while let Some(token) = self.peek() {
            match (token.kind, token.text) {
                (Kind::Close, _) => return,
                (Kind::Open, _) => {
                    self.group(out);
                    expected = false;
                }
                (Kind::Operator, "%") if !expected => {
                    self.at += 1;
                    let left = out.split_off(start);
                    let inner = left.trim_start();
                    out.push_str(&left[..left.len() - inner.len()]);
                    out.push('(');
                    out.push_str(inner);
                    out.push(')');
                    out.push_str(token.before);
                    out.push('|');
                    out.push_str(PERCENT);
                    out.push('(');
                    self.operand(out);
                    out.push(')');
                }
                (Kind::Operator, "." | "|") => {
                    self.push(out);
                    self.push(out);
                    expected = false;
                }
                (Kind::Operator, "-" | "+") if expected => self.push(out),
                (Kind::Operator, "*" | "/" | "//" | "**") => {
                    self.push(out);
                    expected = true;
                }
                (Kind::Operator, _) => {
                    self.push(out);
                    (start, expected) = (out.len(), true);
                }
                (Kind::Word, word) if BETWEEN.contains(&word) => {
                    self.push(out);
                    (start, expected) = (out.len(), true);
                }
                (Kind::Word | Kind::Literal, _) => {
                    self.push(out);
                    expected = false;
                }
            }
        }
    }

    /// A bracket, what is in it, and its end.
    fn group(&mut self, out: &mut String) {
        self.push(out);
        self.sequence(out);
        self.push(out);
    }

    /// One operand with its signs, attributes, calls, filters and tests.
    fn operand(&mut self, out: &mut String) {
        while self.peek().is_some_and(|token| matches!(token.text, "-" | "+")) {
            self.push(out);
        }
        match self.peek().map(|token| token.kind) {
            Some(Kind::Open) => self.group(out),
            Some(Kind::Literal) => {
                // Literals side by side are one.
                while self.peek().is_some_and(|token| token.kind == Kind::Literal) {
                    self.push(out);
                }
            }
            Some(Kind::Word) => self.push(out),
            _ => return,
        }
        while let Some(token) = self.peek() {
            match (token.kind, token.text) {
                (Kind::Open, "(" | "[") => self.group(out),
                (Kind::Operator, "." | "|") => {
                    self.push(out);
                    self.push(out);
                }
                (Kind::Operator, "**") => {
                    self.push(out);
                    return self.operand(out);
                }
                (Kind::Word, "is") => {
                    self.push(out);
                    if self.peek().is_some_and(|token| token.text == "not") {
                        self.push(out);
                    }
                    self.push(out);
                    let argument = self.peek().is_some_and(|token| match token.kind {
                        Kind::Literal => true,
                        Kind::Word => !BETWEEN.contains(&token.text),
                        _ => false,
                    });
                    if argument {
                        self.push(out);
                    }
                }
                _ => return,
            }
        }
    }
}

/// Words that stand between expressions.
const BETWEEN: [&str; 18] = [
    "and",
    "or",
    "not",
    "in",
    "is",
    "if",
    "else",
    "elif",
    "for",
    "set",
    "with",
    "recursive",
    "call",
    "filter",
    "macro",
    "print",
    "include",
    "import",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_knows_stays_as_it_is() {
        for source in [
            "{% if x %}{{ {'a': {'b': 1}} }}{% endif %}{# 1 % 2 {% generation %} #}",
            "{% raw %}{% generation %}{{ 1 % 2 }}{% endraw %}",
            "{{ '{% generation %} %' }} 100 % {",
            "{{ '%",
            "{% if",
            "{{ a } }",
        ] {
            assert_eq!(translated(source).expect("matches"), source);
        }
    }

    #[test]
    fn percent_takes_what_jinja_gives_it() {
        for (source, expected) in [
            ("{{ a % b }}", "{{ (a)|bitnet_percent( b) }}"),
            (
                "{{- a * b % c.d[0] | f(1 % 2) + e -}}",
                "{{- (a * b)|bitnet_percent( c.d[0] | f((1)|bitnet_percent( 2))) + e -}}",
            ),
            ("{{ a + b % -c }}", "{{ a + (b)|bitnet_percent( -c) }}"),
            ("{{ -a % b % c }}", "{{ ((-a)|bitnet_percent( b))|bitnet_percent( c) }}"),
            ("{% if not a % 2 == 0 %}", "{% if not (a)|bitnet_percent( 2) == 0 %}"),
            ("{% set x = '%s'\n % (a, b) %}", "{% set x = ('%s')\n|bitnet_percent( (a, b)) %}"),
            ("{%- set x = f % a -%}", "{%- set x = (f)|bitnet_percent( a) -%}"),
            ("{{ [a % b, c] }}", "{{ [(a)|bitnet_percent( b), c] }}"),
            ("{{ f(x=a % b) }}", "{{ f(x=(a)|bitnet_percent( b)) }}"),
        ] {
            // A space before the operator stays behind its left side.
            let found = translated(source).expect("matches").replace(" |bitnet", "|bitnet");
            assert_eq!(found, expected, "{source}");
        }
    }

    #[test]
    fn generation_is_a_scope() {
        assert_eq!(
            translated("{%- generation -%}a{%endgeneration +%}").expect("matches"),
            "{%- with -%}a{%endwith +%}"
        );
        for source in ["{% generation %}", "{% endgeneration %}", "{% endgeneration %}{% generation %}"] {
            assert!(translated(source).is_err(), "{source}");
        }
    }
}
