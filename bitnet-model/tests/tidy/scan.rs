//! Splits Rust source into code and comments, so that a word in a string or a comment breaks no rule.

/// A source of equal length in lines, twice: what the compiler reads and what only people read.
pub struct Scanned {
    /// Comments, strings and character literals are blank.
    pub code: String,
    /// Everything but comments is blank.
    pub comments: String,
}

/// Scans `text`. Lines keep their numbers.
pub fn scan(text: &str) -> Scanned {
    let chars: Vec<char> = text.chars().collect();
    let (mut code, mut comments) = (String::new(), String::new());
    let mut i = 0;
    while i < chars.len() {
        let rest = &chars[i..];
        let previous = i.checked_sub(1).map(|p| chars[p]);
        let (length, kind) = token(rest, previous);
        for &c in &rest[..length] {
            let keep = |kept: bool| if kept || c == '\n' { c } else { ' ' };
            code.push(keep(kind == Kind::Code));
            comments.push(keep(kind == Kind::Comment));
        }
        i += length;
    }
    Scanned { code, comments }
}

/// The identifiers of a line of code and what follows each without spaces.
pub fn words(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + line[at..].find(is_word)?;
        let end = line[start..].find(|c| !is_word(c)).map_or(line.len(), |n| start + n);
        at = end;
        Some((&line[start..end], line[end..].trim_start()))
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

/// The length and kind of what `rest` begins with; an unfinished literal or comment runs to the end.
fn token(rest: &[char], previous: Option<char>) -> (usize, Kind) {
    let begins = |text: &str| text.chars().enumerate().all(|(i, c)| rest.get(i) == Some(&c));
    if begins("//") {
        return (rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()), Kind::Comment);
    }
    if begins("/*") {
        return (block_comment(rest), Kind::Comment);
    }
    if rest[0] == '"' {
        return (quoted(rest), Kind::Literal);
    }
    let inside_word = previous.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest[0] == 'r' && (!inside_word || previous == Some('b')) {
        let hashes = rest[1..].iter().take_while(|&&c| c == '#').count();
        if rest.get(1 + hashes) == Some(&'"') {
            return (raw_string(rest, hashes), Kind::Literal);
        }
    }
    if rest[0] == '\'' {
        // 'a' and '\n' are characters; 'a without a closing quote is a lifetime.
        if rest.get(1) == Some(&'\\') {
            let end = rest.iter().skip(3).position(|&c| c == '\'').map_or(rest.len(), |n| n + 4);
            return (end, Kind::Literal);
        }
        if rest.get(2) == Some(&'\'') {
            return (3, Kind::Literal);
        }
    }
    (1, Kind::Code)
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut i) = (0usize, 0);
    while i + 1 < rest.len() {
        match [rest[i], rest[i + 1]] {
            ['/', '*'] => depth += 1,
            ['*', '/'] if depth == 1 => return i + 2,
            ['*', '/'] => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
    }
    rest.len()
}

fn quoted(rest: &[char]) -> usize {
    let mut i = 1;
    while i < rest.len() {
        match rest[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    rest.len()
}

fn raw_string(rest: &[char], hashes: usize) -> usize {
    let body = 2 + hashes;
    let closes = |i: usize| rest[i] == '"' && rest[i + 1..].iter().take_while(|&&c| c == '#').count() >= hashes;
    (body..rest.len()).find(|&i| closes(i)).map_or(rest.len(), |i| i + 1 + hashes)
}
