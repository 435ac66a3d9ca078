//! Filters, tests and methods that Python and Jinja have and the engine lacks, or has with other arguments.

use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use minijinja_contrib::{globals, pycompat};

use super::super::json::{self, Style};
use super::syntax::PERCENT;

/// Makes an environment that of transformers, as far as templates of chats go.
pub fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(format);
    environment.add_filter("tojson", tojson);
    environment.add_filter(PERCENT, percent);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("indent", indent);
    environment
        .add_filter("center", |text: String, width: Option<usize>| padded(&text, width.unwrap_or(80), " ", Side::Both));
    environment.add_filter("wordcount", wordcount);
    environment.add_filter("truncate", truncate);
    environment.add_filter("urlencode", urlencode);
    // The engine's give other texts than Jinja's.
    environment.remove_filter("attr");
    environment.remove_filter("pprint");
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    });
    // Nothing that can be called is a value here but undefined, which Jinja counts as callable.
    environment.add_test("callable", |value: &Value| value.is_undefined());
    environment.add_function("joiner", globals::joiner);
    environment.add_function("cycler", |items: Rest<Value>| {
        if items.is_empty() {
            Err(refused("cycler: at least one item has to be provided"))
        } else {
            globals::cycler(items.0)
        }
    });
}

fn refused(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Prints floats as Python does.
fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match f64::try_from(value.clone()) {
        Ok(float) if value.is_number() && !value.is_integer() => Ok(out.write_str(&json::python_float(float))?),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// `json.dumps` with the arguments that transformers lets templates give. The engine's own escapes for HTML.
fn tojson(value: &Value, arguments: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let [ensure_ascii, indent, separators, sort_keys] =
        named(&arguments, &options, ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent {
        Some(indent) if indent.kind() == ValueKind::String => Some(indent.as_str().unwrap_or_default().to_owned()),
        Some(indent) if !indent.is_none() => {
            Some(" ".repeat(usize::try_from(i64::try_from(indent)?).unwrap_or(0).min(LARGEST_INDENT)))
        }
        _ => None,
    };
    let mut style = Style::with_indent(indent);
    style.ensure_ascii = ensure_ascii.is_some_and(|value| value.is_true());
    style.sort_keys = sort_keys.is_some_and(|value| value.is_true());
    if let Some(separators) = separators.filter(|value| !value.is_none()) {
        let texts: Vec<String> =
            separators.try_iter()?.map(|text| text.as_str().unwrap_or_default().to_owned()).collect();
        let [between, behind] = texts.try_into().map_err(|_| refused("tojson: `separators` must be two texts"))?;
        style.separators = (between, behind);
    }
    json::python(value, &style).map_err(|message| Error::new(ErrorKind::BadSerialization, message))
}

/// Arguments by place or by name.
fn named<const N: usize>(
    arguments: &Rest<Value>,
    options: &Kwargs,
    names: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    if arguments.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut found = [const { None }; N];
    for (index, name) in names.into_iter().enumerate() {
        let by_name: Option<Value> = if options.has(name) { Some(options.get(name)?) } else { None };
        if by_name.is_some() && index < arguments.len() {
            return Err(refused(format!("`{name}` is given twice")));
        }
        found[index] = arguments.get(index).cloned().or(by_name);
    }
    options.assert_all_used()?;
    Ok(found)
}

/// Python's `%`: of a text and what goes into it, or of numbers.
fn percent(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(text) = left.as_str() {
        let arguments: Vec<Value> = if right.is_tuple() { right.try_iter()?.collect() } else { vec![right.clone()] };
        if right.kind() != ValueKind::Map && takes(text) != arguments.len() {
            return Err(refused("not as many values as the text has places for"));
        }
        return state.apply_filter("format", &[std::slice::from_ref(left), &arguments[..]].concat());
    }
    let whole = |value: &Value| {
        if matches!(value.kind(), ValueKind::Number | ValueKind::Bool) {
            i128::try_from(value.clone()).ok()
        } else {
            None
        }
    };
    if let (true, true, Some(a), Some(b)) = (is_whole(left), is_whole(right), whole(left), whole(right)) {
        let remainder = a.checked_rem(b).ok_or_else(|| refused("division by zero"))?;
        return Ok(Value::from(if remainder != 0 && (remainder < 0) != (b < 0) { remainder + b } else { remainder }));
    }
    match (left.is_number(), right.is_number(), f64::try_from(left.clone()), f64::try_from(right.clone())) {
        (true, true, Ok(_), Ok(0.0)) => Err(refused("division by zero")),
        (true, true, Ok(a), Ok(b)) => Ok(Value::from(a - b * (a / b).floor())),
        _ => Err(refused(format!("`%` of {} and {}", left.kind(), right.kind()))),
    }
}

fn is_whole(value: &Value) -> bool {
    value.is_integer() || value.kind() == ValueKind::Bool
}

/// How many values a text of printf's style takes.
fn takes(text: &str) -> usize {
    let (mut count, mut letters) = (0, text.chars());
    while let Some(letter) = letters.next() {
        if letter != '%' {
            continue;
        }
        for letter in letters.by_ref() {
            match letter {
                '*' => count += 1,
                '%' => break,
                'a'..='g' | 'i'..='k' | 'm'..='z' | 'A'..='Z' => {
                    count += 1;
                    break;
                }
                // Flags, width, precision, and the sizes of C, which mean nothing.
                _ => {}
            }
        }
    }
    count
}

fn default(value: &Value, arguments: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let [instead, boolean] = named(&arguments, &options, ["default_value", "boolean"])?;
    let replaced = value.is_undefined() || boolean.is_some_and(|value| value.is_true()) && !value.is_true();
    Ok(if replaced { instead.unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

fn int(state: &State, value: &Value, arguments: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let [instead, base] = named(&arguments, &options, ["default", "base"])?;
    let base = base.map(u32::try_from).transpose()?;
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let text = value.as_str().map(|text| Value::from(text.trim()));
    let instead = instead.unwrap_or_else(|| Value::from(0));
    minijinja::filters::int(
        state,
        text.as_ref().unwrap_or(value),
        Some(instead),
        base,
        std::iter::empty::<(&str, Value)>().collect(),
    )
}

fn float(state: &State, value: &Value, arguments: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let [instead] = named(&arguments, &options, ["default"])?;
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let text = value.as_str().map(|text| Value::from(text.trim()));
    let instead = instead.unwrap_or_else(|| Value::from(0.0));
    minijinja::filters::float(
        state,
        text.as_ref().unwrap_or(value),
        Some(instead),
        std::iter::empty::<(&str, Value)>().collect(),
    )
}

/// Jinja's: the width is a number of spaces, or a text.
fn indent(text: String, arguments: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let [width, first, blank] = named(&arguments, &options, ["width", "first", "blank"])?;
    let width = match width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(width)?.min(LONGEST_PADDING)),
        },
    };
    let (first, blank) = (first.is_some_and(|value| value.is_true()), blank.is_some_and(|value| value.is_true()));
    if width.len().saturating_mul(text.lines().count() + 1) > LONGEST_PADDING {
        return Err(refused("indent: the text becomes too long"));
    }
    let mut out = String::new();
    // A line's end at the end is one more line, which is blank.
    for (index, line) in (text + "\n").lines().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        if if index == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&width);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn wordcount(text: String) -> usize {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').filter(|word| !word.is_empty()).count()
}

fn truncate(text: String, arguments: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let [length, kill, end, leeway] = named(&arguments, &options, ["length", "killwords", "end", "leeway"])?;
    let length = length.map(usize::try_from).transpose()?.unwrap_or(255);
    let leeway = leeway.filter(|value| !value.is_none()).map(usize::try_from).transpose()?.unwrap_or(5);
    let end = end.map_or_else(|| "...".to_owned(), |end| end.to_string());
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let kept = length
        .checked_sub(end.chars().count())
        .ok_or_else(|| refused("truncate: `length` is less than that of `end`"))?;
    let kept: String = text.chars().take(kept).collect();
    let kept = if kill.is_some_and(|value| value.is_true()) {
        &kept[..]
    } else {
        kept.rsplit_once(' ').map_or(&kept[..], |(kept, _)| kept)
    };
    Ok(format!("{kept}{end}"))
}

fn urlencode(value: &Value) -> Result<String, Error> {
    let quote = |text: &str, safe: u8, space: &str| -> String {
        let letter = |byte: u8| match byte {
            b' ' => space.to_owned(),
            _ if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) || byte == safe => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        };
        text.bytes().map(letter).collect()
    };
    if value.kind() != ValueKind::Map {
        return Ok(quote(&value.to_string(), b'/', "%20"));
    }
    let mut pairs = Vec::new();
    for key in value.try_iter()? {
        let item = value.get_item(&key)?;
        pairs.push(format!("{}={}", quote(&key.to_string(), b'_', "+"), quote(&item.to_string(), b'_', "+")));
    }
    Ok(pairs.join("&"))
}

/// Python's methods of texts and lists, as far as the engine's companion lacks them.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => match text_method(text, name, arguments)? {
            Some(found) => Ok(found),
            None => pycompat::unknown_method_callback(state, value, name, arguments),
        },
        (ValueKind::Seq, _) if name == "index" => {
            let (wanted,): (Value,) = from_args(arguments)?;
            let found = value.try_iter()?.position(|item| item == wanted);
            found.map(Value::from).ok_or_else(|| refused("index: the list does not have the value"))
        }
        _ => pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

enum Side {
    Left,
    Right,
    Both,
}

fn text_method(text: &str, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "startswith" | "endswith" if arguments.len() > 1 => {
            let (wanted, start, end): (Value, i64, Option<i64>) = from_args(arguments)?;
            let part = slice(text, start, end);
            let is_there =
                |wanted: &str| if name == "startswith" { part.starts_with(wanted) } else { part.ends_with(wanted) };
            let wanted = if wanted.kind() == ValueKind::String { vec![wanted] } else { wanted.try_iter()?.collect() };
            Value::from(wanted.iter().filter_map(Value::as_str).any(is_there))
        }
        "removeprefix" | "removesuffix" => {
            let (part,): (&str,) = from_args(arguments)?;
            let rest = if name == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
            Value::from(rest.unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            if separator.is_empty() {
                return Err(refused("empty separator"));
            }
            let found = if name == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            let parts = match found {
                Some((before, after)) => [before, separator, after],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Value::from(Tuple::from(parts.map(Value::from).to_vec()))
        }
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(arguments)?;
            Value::from(rsplit(text, separator, most.and_then(|most| usize::try_from(most).ok()))?)
        }
        "index" | "rindex" => {
            let (wanted,): (&str,) = from_args(arguments)?;
            let found = if name == "index" { text.find(wanted) } else { text.rfind(wanted) };
            Value::from(text[..found.ok_or_else(|| refused("substring not found"))?].chars().count())
        }
        "title" => {
            let () = from_args(arguments)?;
            Value::from(title(text))
        }
        "swapcase" => {
            let () = from_args(arguments)?;
            let swapped = text.chars().map(|letter| {
                if letter.is_uppercase() {
                    letter.to_lowercase().to_string()
                } else {
                    letter.to_uppercase().to_string()
                }
            });
            Value::from(swapped.collect::<String>())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(arguments)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
            Value::from(format!("{sign}{}", padded(digits, width.saturating_sub(sign.len()), "0", Side::Left)?))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<&str>) = from_args(arguments)?;
            let side = match name {
                "ljust" => Side::Right,
                "rjust" => Side::Left,
                _ => Side::Both,
            };
            Value::from(padded(text, width, fill.unwrap_or(" "), side)?)
        }
        "expandtabs" => {
            let (width,): (Option<usize>,) = from_args(arguments)?;
            Value::from(expandtabs(text, width.unwrap_or(8))?)
        }
        "istitle" => {
            let () = from_args(arguments)?;
            Value::from(is_title(text))
        }
        "isdecimal" => {
            let () = from_args(arguments)?;
            Value::from(!text.is_empty() && text.chars().all(|letter| letter.is_ascii_digit()))
        }
        "isidentifier" => {
            let () = from_args(arguments)?;
            let first = text.chars().next().is_some_and(|letter| letter.is_alphabetic() || letter == '_');
            Value::from(first && text.chars().all(|letter| letter.is_alphanumeric() || letter == '_'))
        }
        _ => return Ok(None),
    }))
}

/// `text[start:end]`.
fn slice(text: &str, start: i64, end: Option<i64>) -> String {
    let count = text.chars().count() as i64;
    let place = |at: i64| usize::try_from(if at < 0 { (at + count).max(0) } else { at.min(count) }).unwrap_or(0);
    let (start, end) = (place(start), place(end.unwrap_or(count)));
    text.chars().skip(start).take(end.saturating_sub(start)).collect()
}

fn rsplit(text: &str, separator: Option<&str>, most: Option<usize>) -> Result<Vec<String>, Error> {
    let (mut parts, mut rest) = (Vec::new(), text);
    match separator {
        Some("") => return Err(refused("empty separator")),
        Some(separator) => {
            while most.is_none_or(|most| parts.len() < most)
                && let Some((before, after)) = rest.rsplit_once(separator)
            {
                parts.push(after.to_owned());
                rest = before;
            }
            parts.push(rest.to_owned());
        }
        None => {
            rest = rest.trim_end();
            while most.is_none_or(|most| parts.len() < most)
                && let Some((before, after)) = rest.rsplit_once(char::is_whitespace)
            {
                parts.push(after.to_owned());
                rest = before.trim_end();
            }
            if !rest.is_empty() {
                parts.push(rest.to_owned());
            }
        }
    }
    parts.retain(|part| separator.is_some() || !part.is_empty());
    parts.reverse();
    Ok(parts)
}

fn padded(text: &str, width: usize, fill: &str, side: Side) -> Result<String, Error> {
    if fill.chars().count() != 1 {
        return Err(refused("the fill character must be exactly one character long"));
    }
    if width > LONGEST_PADDING {
        return Err(refused("the width is too large"));
    }
    let count = text.chars().count();
    let missing = width.saturating_sub(count);
    let left = match side {
        Side::Left => missing,
        Side::Right => 0,
        // As CPython shares an odd rest.
        Side::Both => missing / 2 + (missing & width & 1),
    };
    Ok(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)))
}

fn expandtabs(text: &str, width: usize) -> Result<String, Error> {
    if width.saturating_mul(text.matches('\t').count()) > LONGEST_PADDING {
        return Err(refused("expandtabs: the text becomes too long"));
    }
    let (mut out, mut column) = (String::new(), 0);
    for letter in text.chars() {
        match letter {
            '\t' => {
                let spaces = if width == 0 { 0 } else { width - column % width };
                out.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            _ => {
                out.push(letter);
                column = if matches!(letter, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(out)
}

/// Python's: every letter behind something that is no letter is a capital.
fn title(text: &str) -> String {
    let (mut out, mut inside) = (String::new(), false);
    for letter in text.chars() {
        if inside {
            out.extend(letter.to_lowercase());
        } else {
            out.extend(letter.to_uppercase());
        }
        inside = letter.is_alphabetic();
    }
    out
}

fn is_title(text: &str) -> bool {
    let (mut any, mut inside) = (false, false);
    for letter in text.chars() {
        if letter.is_uppercase() && inside || letter.is_lowercase() && !inside {
            return false;
        }
        inside = letter.is_uppercase() || letter.is_lowercase();
        any |= inside;
    }
    any
}

/// A template that asks for more is a joke at our cost.
const LARGEST_INDENT: usize = 16;
const LONGEST_PADDING: usize = 1 << 20;
