//! The words of a source: its text without comments and literals. Reads text, never a file.

/// The lines of `code` with a forbidden word.
pub(crate) fn forbidden(path: &str, code: &str, forbidden: &[(&str, &str)]) -> Vec<String> {
    let mut findings = Vec::new();
    for (index, line) in code.lines().enumerate() {
        for (word, reason) in forbidden {
            if line.contains(word) {
                findings.push(format!("{path}:{}: {word}: {reason}", index + 1));
            }
        }
    }
    findings
}

/// The text with comments and the insides of literals made blank, line for line.
pub(crate) fn without_comments(text: &str) -> String {
    let source: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < source.len() {
        let end = blank_end(&source, at);
        if end == at {
            code.push(source[at]);
            at += 1;
            continue;
        }
        code.extend(source[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    code
}

/// Where the comment or literal that begins at `at` ends; `at` itself where none begins.
fn blank_end(source: &[char], at: usize) -> usize {
    let peek = |offset: usize| source.get(at + offset).copied().unwrap_or('\0');
    let after_word = at > 0 && (source[at - 1].is_alphanumeric() || source[at - 1] == '_');
    match peek(0) {
        '/' if peek(1) == '/' => find(source, at, |c| c == '\n'),
        '/' if peek(1) == '*' => block_comment_end(source, at),
        '"' => quoted_end(source, at + 1, '"'),
        'r' if !after_word || source[at - 1] == 'b' => raw_string_end(source, at),
        // A lifetime has no closing quote: 'a' is a character, 'a is not.
        '\'' if peek(1) == '\\' || peek(2) == '\'' => quoted_end(source, at + 1, '\''),
        _ => at,
    }
}

/// The first place from `from` on that `wanted` accepts, or the end.
fn find(source: &[char], from: usize, wanted: impl Fn(char) -> bool) -> usize {
    source[from..].iter().position(|c| wanted(*c)).map_or(source.len(), |offset| from + offset)
}

/// The end of a comment that may hold others.
fn block_comment_end(source: &[char], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    while at < source.len() {
        match (source[at], source.get(at + 1)) {
            ('/', Some('*')) => depth += 1,
            ('*', Some('/')) => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            break;
        }
    }
    at.min(source.len())
}

/// The end of a literal whose opening quote is passed.
fn quoted_end(source: &[char], start: usize, quote: char) -> usize {
    let mut at = start;
    while at < source.len() && source[at] != quote {
        at += if source[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(source.len())
}

/// The end of `r"..."` or `r#"..."#`; `start` where the `r` begins something else.
fn raw_string_end(source: &[char], start: usize) -> usize {
    let quote = find(source, start + 1, |c| c != '#');
    if source.get(quote) != Some(&'"') {
        return start;
    }
    let hashes = quote - start - 1;
    let mut at = quote + 1;
    while at < source.len() {
        at = find(source, at, |c| c == '"') + 1;
        if source.get(at..at + hashes).is_some_and(|after| after.iter().all(|c| *c == '#')) {
            return at + hashes;
        }
    }
    source.len()
}

#[test]
fn forbidden_words_are_found_in_code_only() {
    let code = without_comments(
        "let x = dbg!(y); // todo!\nlet s = \"todo!\";\nlet (a, b) = mpsc::unbounded_channel();\n",
    );
    assert_eq!(
        forbidden("a.rs", &code, crate::FORBIDDEN),
        ["a.rs:1: dbg!: left over", "a.rs:3: unbounded_channel: no queue without a bound"]
    );
    assert_eq!(forbidden("a.rs", "tokio::time::sleep(second).await", crate::FORBIDDEN_IN_TESTS).len(), 1);
}

#[test]
fn comments_and_literals_are_blanked() {
    let cases = [
        ("a // b", "a     "),
        ("a /* b /* c */ d */ e", "a                   e"),
        ("f(\"x // y\") // z", "f(        )     "),
        ("f(r#\"a\"b\"#)", "f(        )"),
        ("f('\"', '\\'', b)", "f(   ,     , b)"),
        ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
        ("for r in rs {}", "for r in rs {}"),
        ("\"a\nb\" c", "  \n   c"),
        ("\"a\\\\\" b", "      b"),
    ];
    for (text, expected) in cases {
        assert_eq!(without_comments(text), expected, "{text:?}");
    }
}
