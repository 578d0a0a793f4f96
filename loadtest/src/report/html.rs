//! Markup that cannot go wrong: elements close themselves, and every text and attribute is escaped on its way in. There is no way
//! to put in a string as markup, since most strings of a run are foreign: channel names, commands, errors. Pure.

use std::fmt::Display;

use crate::units::visible;

/// A piece of HTML, with SVG in it.
#[derive(Debug, Default)]
pub(crate) struct Html(String);

/// Attributes of an element.
pub(crate) type Attributes<'a> = &'a [(&'static str, &'a dyn Display)];

impl Html {
    /// `<tag …>what `inner` adds</tag>`.
    pub(crate) fn element(
        &mut self,
        tag: &'static str,
        attributes: Attributes<'_>,
        inner: impl FnOnce(&mut Self),
    ) {
        self.tag(tag, attributes, ">");
        inner(self);
        for part in ["</", tag, ">"] {
            self.0.push_str(part);
        }
        if matches!(tag, "p" | "table" | "section" | "figure" | "tr" | "h1" | "h2" | "h3" | "svg" | "header")
        {
            self.0.push('\n');
        }
    }

    /// `<tag …>text</tag>`.
    pub(crate) fn leaf(&mut self, tag: &'static str, attributes: Attributes<'_>, text: &str) {
        self.element(tag, attributes, |html| html.text(text));
    }

    /// `<tag …/>`.
    pub(crate) fn void(&mut self, tag: &'static str, attributes: Attributes<'_>) {
        self.tag(tag, attributes, "/>");
    }

    /// Text.
    pub(crate) fn text(&mut self, text: &str) {
        for c in visible(text).chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                _ => self.0.push(c),
            }
        }
    }

    /// A style sheet of this program's own.
    pub(crate) fn style(&mut self, sheet: &'static str) {
        for part in ["<style>", sheet, "</style>\n"] {
            self.0.push_str(part);
        }
    }

    /// The whole document.
    pub(crate) fn into_document(self) -> String {
        format!("<!DOCTYPE html>\n{}\n", self.0)
    }

    fn tag(&mut self, tag: &'static str, attributes: Attributes<'_>, end: &str) {
        self.0.push('<');
        self.0.push_str(tag);
        for (name, value) in attributes {
            for part in [" ", name, "=\""] {
                self.0.push_str(part);
            }
            self.text(&value.to_string());
            self.0.push('"');
        }
        self.0.push_str(end);
    }
}

/// What a table cell says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    /// Its text.
    pub text: String,
    /// A second, smaller line.
    pub small: String,
    /// Its class: `best`, `bad`, `mute`.
    pub class: &'static str,
}

impl Cell {
    /// Plain text.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }
}

/// A table: a caption, headers of columns, and rows whose first cell is the header of the row.
pub(crate) fn table(html: &mut Html, caption: &str, head: &[String], rows: &[Vec<Cell>]) {
    html.element("div", &[("class", &"wide")], |html| {
        html.element("table", &[], |html| {
            html.leaf("caption", &[], caption);
            html.element("thead", &[], |html| {
                html.element("tr", &[], |html| {
                    for title in head {
                        html.leaf("th", &[("scope", &"col")], title);
                    }
                });
            });
            html.element("tbody", &[], |html| {
                for row in rows {
                    html.element("tr", &[], |html| row_cells(html, row));
                }
            });
        });
    });
}

fn row_cells(html: &mut Html, row: &[Cell]) {
    for (index, cell) in row.iter().enumerate() {
        let inner = |html: &mut Html| {
            html.text(&cell.text);
            if !cell.small.is_empty() {
                html.leaf("small", &[], &cell.small);
            }
        };
        match index {
            0 => html.element("th", &[("scope", &"row")], inner),
            _ if cell.class.is_empty() => html.element("td", &[], inner),
            _ => html.element("td", &[("class", &cell.class)], inner),
        }
    }
}

#[cfg(test)]
pub(crate) mod check {
    //! Reads markup back.

    /// The tags in order, each with its attributes' names; panics where the markup is not well formed.
    pub(crate) fn tags(page: &str) -> Vec<String> {
        let mut open: Vec<String> = Vec::new();
        let mut tags = Vec::new();
        let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap_or(page);
        while let Some(start) = rest.find('<') {
            let (text, tag) = rest.split_at(start);
            let in_style = open.last().is_some_and(|it| it == "style");
            assert!(in_style || !text.contains(['>', '"']), "unescaped: {text:?}");
            let end = tag.find('>').unwrap_or_else(|| panic!("a tag without an end: {tag:.80}"));
            let inner = &tag[1..end];
            rest = &tag[end + 1..];
            if let Some(name) = inner.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
                continue;
            }
            let (inner, is_void) = inner.strip_suffix('/').map_or((inner, false), |it| (it, true));
            let mut parts = inner.split('"');
            let mut seen = String::new();
            while let Some(name) = parts.next() {
                seen.push_str(name);
                assert!(!name.contains(['\'', '<', '&']), "{inner}");
                parts.next();
            }
            if !is_void {
                open.push(seen.split(' ').next().unwrap().to_owned());
            }
            tags.push(seen);
        }
        assert!(open.is_empty(), "not closed: {open:?}");
        tags
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn markup_in_text_stays_text() {
        let mut html = Html::default();
        html.element("p", &[("title", &"\" onload=\"x")], |html| {
            html.text("<script>alert('&')</script>\u{1b}[2J")
        });
        assert_eq!(
            html.0,
            "<p title=\"&quot; onload=&quot;x\">&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;\\u{1b}[2J</p>\n"
        );
    }

    proptest! {
        #[test]
        fn any_text_leaves_the_tags_alone(text in any::<String>(), other in "[<>&\"'/a-z= ]{0,40}") {
            let mut html = Html::default();
            for it in [&text, &other] {
                html.element("p", &[("class", it)], |html| html.text(it));
                table(&mut html, it, std::slice::from_ref(it), &[vec![Cell::new(it.as_str())]]);
            }
            let expected = ["p class=", "div class=", "table", "caption", "thead", "tr", "th scope=", "tbody", "tr", "th scope="];
            prop_assert_eq!(check::tags(&html.0), [expected, expected].concat());
        }
    }
}
