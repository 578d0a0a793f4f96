//! Finds the patterns that match a name among very many: a tree with a level for each token. Used when a channel appears,
//! never for a sample.

use std::collections::HashMap;

use super::Pattern;

/// A set of patterns, each with values.
#[derive(Debug)]
pub struct PatternIndex<V> {
    root: Node<V>,
    len: usize,
}

#[derive(Debug)]
struct Node<V> {
    literal: HashMap<Box<str>, Self>,
    /// Below `*`.
    any: Option<Box<Self>>,
    /// Values of patterns that end here.
    here: Vec<V>,
    /// Values of patterns whose next and last token is `>`.
    rest: Vec<V>,
}

impl<V> Node<V> {
    fn new() -> Self {
        Self { literal: HashMap::new(), any: None, here: Vec::new(), rest: Vec::new() }
    }

    fn is_empty(&self) -> bool {
        self.literal.is_empty() && self.any.is_none() && self.here.is_empty() && self.rest.is_empty()
    }
}

impl<V: Copy + PartialEq> PatternIndex<V> {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self { root: Node::new(), len: 0 }
    }

    /// Number of values.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a value to a pattern.
    pub fn insert(&mut self, pattern: &Pattern, value: V) {
        let mut node = &mut self.root;
        let mut tokens = pattern.as_str().split('.').peekable();
        while let Some(token) = tokens.next() {
            match token {
                ">" if tokens.peek().is_none() => {
                    node.rest.push(value);
                    self.len += 1;
                    return;
                }
                "*" => node = node.any.get_or_insert_with(|| Box::new(Node::new())),
                _ => node = node.literal.entry(token.into()).or_insert_with(Node::new),
            }
        }
        node.here.push(value);
        self.len += 1;
    }

    /// Removes a value from a pattern; branches that hold nothing any more go with it.
    pub fn remove(&mut self, pattern: &Pattern, value: V) {
        let tokens: Vec<&str> = pattern.as_str().split('.').collect();
        if remove(&mut self.root, &tokens, value) {
            self.len -= 1;
        }
    }

    /// Calls `found` with the values of each pattern that matches `name`.
    pub fn matching(&self, name: &str, found: &mut impl FnMut(V)) {
        let wildcards_reach = !super::is_reserved(name);
        walk(&self.root, Some(name), wildcards_reach, found);
    }
}

impl<V: Copy + PartialEq> Default for PatternIndex<V> {
    fn default() -> Self {
        Self::new()
    }
}

/// `rest_of_name` is `None` behind the last token. The depth is bounded by [`super::TOKENS_MAX`].
fn walk<V: Copy>(
    node: &Node<V>,
    rest_of_name: Option<&str>,
    wildcards_reach: bool,
    found: &mut impl FnMut(V),
) {
    let Some(name) = rest_of_name else {
        node.here.iter().copied().for_each(found);
        return;
    };
    let (token, rest) = name.split_once('.').map_or((name, None), |(token, rest)| (token, Some(rest)));
    if wildcards_reach {
        node.rest.iter().copied().for_each(&mut *found);
        if let Some(any) = &node.any {
            walk(any, rest, true, found);
        }
    }
    if let Some(next) = node.literal.get(token) {
        walk(next, rest, true, found);
    }
}

fn remove<V: Copy + PartialEq>(node: &mut Node<V>, tokens: &[&str], value: V) -> bool {
    match tokens {
        [] => remove_value(&mut node.here, value),
        [">"] => remove_value(&mut node.rest, value),
        ["*", rest @ ..] => {
            let Some(any) = &mut node.any else { return false };
            let removed = remove(any, rest, value);
            if any.is_empty() {
                node.any = None;
            }
            removed
        }
        [token, rest @ ..] => {
            let Some(next) = node.literal.get_mut(*token) else { return false };
            let removed = remove(next, rest, value);
            if next.is_empty() {
                node.literal.remove(*token);
            }
            removed
        }
    }
}

fn remove_value<V: PartialEq>(values: &mut Vec<V>, value: V) -> bool {
    let position = values.iter().position(|other| *other == value);
    if let Some(position) = position {
        values.swap_remove(position);
    }
    position.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> impl Strategy<Value = String> {
        prop_oneof![Just("a".into()), Just("b".into()), Just("*".into())]
    }

    fn pattern() -> impl Strategy<Value = String> {
        (prop::collection::vec(token(), 1..4), any::<bool>(), any::<bool>()).prop_map(
            |(mut tokens, tail, server)| {
                if server {
                    tokens[0] = "$s".into();
                }
                if tail {
                    tokens.push(">".into());
                }
                tokens.join(".")
            },
        )
    }

    proptest! {
        #[test]
        fn finds_what_each_pattern_alone_would_match(
            patterns in prop::collection::vec(pattern(), 0..20),
            removed in prop::collection::vec(any::<bool>(), 20),
            name in pattern().prop_map(|p| p.replace('*', "c").replace('>', "a")),
        ) {
            let mut index = PatternIndex::new();
            let parsed: Vec<_> = patterns.iter().map(|p| Pattern::parse(p, 255).unwrap()).collect();
            for (value, pattern) in parsed.iter().enumerate() {
                index.insert(pattern, value);
            }
            for (value, pattern) in parsed.iter().enumerate().filter(|(value, _)| removed[*value]) {
                index.remove(pattern, value);
            }
            let mut found = Vec::new();
            index.matching(&name, &mut |value| found.push(value));
            found.sort_unstable();
            let expected: Vec<usize> = (0..parsed.len())
                .filter(|&value| !removed[value] && parsed[value].matches(&name))
                .collect();
            prop_assert_eq!(found, expected);
            for (value, pattern) in parsed.iter().enumerate().filter(|(value, _)| !removed[*value]) {
                index.remove(pattern, value);
            }
            prop_assert!(index.is_empty() && index.root.is_empty());
        }
    }
}
