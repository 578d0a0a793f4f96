//! How a setting is declared, read and written: the macro that makes structs, defaults and the table of keys from one
//! declaration, and the kinds of values. Knows no file, no variable and no flag; `load.rs` does.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use super::Config;

/// One setting: where it stands, what it means, and how it is read from and written to a [`Config`].
#[derive(Debug)]
pub struct Key {
    pub(super) section: Option<&'static str>,
    pub(super) field: &'static str,
    pub(super) suffix: &'static str,
    pub(super) doc: &'static [&'static str],
    pub(super) varies: Option<&'static str>,
    pub(super) secret: bool,
    pub(super) holds_secret: fn(&Config) -> bool,
    pub(super) equal: fn(&Config, &Config) -> bool,
    pub(super) expected: fn() -> String,
    pub(super) get: fn(&Config) -> String,
    pub(super) set: fn(&mut Config, Given<'_>) -> bool,
}

impl Key {
    /// The section of the file that holds it; `None` for the top of the file.
    #[must_use]
    pub const fn section(&self) -> Option<&'static str> {
        self.section
    }

    /// Its name within its section, such as `ping_interval_ms`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}{}", self.field, self.suffix)
    }

    /// Its full name, as `--set` takes it, such as `server.ping_interval_ms`.
    #[must_use]
    pub fn path(&self) -> String {
        match self.section {
            Some(section) => format!("{section}.{}", self.name()),
            None => self.name(),
        }
    }

    /// Its environment variable, such as `TIDEWIRE_SERVER_PING_INTERVAL_MS`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.path().replace('.', "_").to_ascii_uppercase())
    }

    /// What it means.
    #[must_use]
    pub fn doc(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join("\n")
    }

    /// The values that it takes, with their unit: "a whole number from 1 to 1024 (threads)".
    #[must_use]
    pub fn expected(&self) -> String {
        (self.expected)()
    }

    /// Its value in `config`, as TOML.
    #[must_use]
    pub fn value(&self, config: &Config) -> String {
        (self.get)(config)
    }

    /// Whether it is as it is by default.
    pub(super) fn is_default(&self, config: &Config) -> bool {
        (self.equal)(config, &Config::default())
    }

    /// Whether its value may not be shown, and not be given where others can read it.
    #[must_use]
    pub const fn is_secret(&self) -> bool {
        self.secret
    }

    /// Whether its value in `config` may not be given where others can read it: always for a secret, and for another one where a
    /// password is in it.
    pub(super) fn holds_secret(&self, config: &Config) -> bool {
        (self.holds_secret)(config)
    }

    /// Whether what was given may not be repeated.
    pub(super) fn hides(&self, given: Given<'_>) -> bool {
        let mut scratch = Config::default();
        self.secret || ((self.set)(&mut scratch, given) && self.holds_secret(&scratch))
    }

    /// In words, a default that depends on the machine; `None` if the default is the same everywhere.
    #[must_use]
    pub const fn varies(&self) -> Option<&'static str> {
        self.varies
    }
}

/// What the environment variables of this program begin with.
pub const VARIABLE_PREFIX: &str = "TIDEWIRE_";

/// A value as it was given.
#[derive(Clone, Copy, Debug)]
pub(super) enum Given<'a> {
    /// In a file, where TOML tells its type.
    Toml(&'a DeValue<'a>),
    /// In a variable or a flag, where only the key tells its type.
    Text(&'a str),
}

impl Given<'_> {
    /// Calls `read` with the value as TOML: a number in a variable or a flag is written as it is in the file.
    fn as_toml<T>(self, read: impl FnOnce(&DeValue<'_>) -> Option<T>) -> Option<T> {
        match self {
            Self::Toml(value) => read(value),
            Self::Text(text) => read(DeValue::parse(text).ok()?.get_ref()),
        }
    }

    fn integer(self) -> Option<u64> {
        self.as_toml(|value| {
            let integer = value.as_integer()?;
            u64::from_str_radix(integer.as_str(), integer.radix()).ok()
        })
    }

    fn number(self) -> Option<f64> {
        self.as_toml(|value| match value {
            DeValue::Float(float) => float.as_str().parse().ok(),
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().parse().ok(),
            _ => None,
        })
    }

    fn boolean(self) -> Option<bool> {
        self.as_toml(|value| value.as_bool())
    }

    /// Calls `read` with the text of a string.
    pub(super) fn text<T>(self, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        match self {
            Self::Toml(value) => read(value.as_str()?),
            Self::Text(text) => read(text),
        }
    }
}

/// A type that a setting can have.
pub(super) trait Setting: Sized {
    /// What the key adds to the name of the field: the unit, where the type does not carry it.
    const SUFFIX: &'static str = "";
    /// Whether nobody may see it.
    const SECRET: bool = false;
    /// How a declaration narrows the type.
    type Bounds;
    /// The value, if it is of the type and within the bounds.
    fn take(given: Given<'_>, bounds: &Self::Bounds) -> Option<Self>;
    /// What `take` accepts, in words that end "give ...".
    fn expected(bounds: &Self::Bounds, unit: &str) -> String;
    /// Whether this value is one that nobody may see.
    fn holds_secret(&self) -> bool {
        Self::SECRET
    }
    /// As TOML.
    fn to_toml(&self) -> String;
}

/// The bounds of a type that has none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Any;

macro_rules! whole_number {
    ($($Type:ty),+) => {$(
        impl Setting for $Type {
            type Bounds = RangeInclusive<u64>;

            fn take(given: Given<'_>, bounds: &Self::Bounds) -> Option<Self> {
                Self::try_from(given.integer().filter(|value| bounds.contains(value))?).ok()
            }

            fn expected(bounds: &Self::Bounds, unit: &str) -> String {
                range("a whole number", bounds, unit)
            }

            fn to_toml(&self) -> String {
                self.to_string()
            }
        }
    )+};
}

whole_number!(usize, u32, u64);

/// In whole milliseconds.
impl Setting for Duration {
    const SUFFIX: &'static str = "_ms";
    type Bounds = RangeInclusive<u64>;

    fn take(given: Given<'_>, bounds: &Self::Bounds) -> Option<Self> {
        u64::take(given, bounds).map(Self::from_millis)
    }

    fn expected(bounds: &Self::Bounds, unit: &str) -> String {
        u64::expected(bounds, unit)
    }

    fn to_toml(&self) -> String {
        self.as_millis().to_string()
    }
}

/// Finite, since the bounds are.
impl Setting for f64 {
    type Bounds = RangeInclusive<Self>;

    fn take(given: Given<'_>, bounds: &Self::Bounds) -> Option<Self> {
        given.number().filter(|value| bounds.contains(value))
    }

    fn expected(bounds: &Self::Bounds, unit: &str) -> String {
        range("a number", bounds, unit)
    }

    fn to_toml(&self) -> String {
        format!("{self:?}")
    }
}

impl Setting for bool {
    type Bounds = Any;

    fn take(given: Given<'_>, _: &Any) -> Option<Self> {
        given.boolean()
    }

    fn expected(_: &Any, _: &str) -> String {
        "true or false".to_owned()
    }

    fn to_toml(&self) -> String {
        self.to_string()
    }
}

/// A setting that is a string in the file, and reads and writes itself.
macro_rules! text {
    ($Type:ty, $expected:literal) => {
        impl Setting for $Type {
            type Bounds = Any;

            fn take(given: Given<'_>, _: &Any) -> Option<Self> {
                given.text(|text| text.parse().ok())
            }

            fn expected(_: &Any, _: &str) -> String {
                $expected.to_owned()
            }

            fn to_toml(&self) -> String {
                string(self)
            }
        }
    };
}
pub(super) use text;

text!(SocketAddr, "an IP address and a port, such as \"127.0.0.1:9400\" or \"[::]:9400\"");

text!(String, "a text");

/// An empty text is nothing.
macro_rules! optional_text {
    ($Type:ty, $show:expr, $expected:literal) => {
        impl Setting for Option<$Type> {
            type Bounds = Any;

            fn take(given: Given<'_>, _: &Any) -> Option<Self> {
                given.text(|text| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) })
            }

            fn expected(_: &Any, _: &str) -> String {
                concat!($expected, ", or \"\" for none").to_owned()
            }

            fn to_toml(&self) -> String {
                string(&self.as_ref().map($show).unwrap_or_default())
            }
        }
    };
}

optional_text!(SocketAddr, SocketAddr::to_string, "an IP address and a port, such as \"127.0.0.1:9401\"");
optional_text!(String, Clone::clone, "a text");

/// A string as TOML.
pub(super) fn string(value: &impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}

fn range<T: Display>(kind: &str, bounds: &RangeInclusive<T>, unit: &str) -> String {
    format!("{kind} from {} to {} ({unit})", bounds.start(), bounds.end())
}

/// Makes, from one declaration of each setting, the structs, their defaults and the table [`KEYS`](super::KEYS).
///
/// A setting is declared as `field: Type = default, "unit", bounds;` under its documentation. `varies "words"` marks a
/// default that depends on the machine.
macro_rules! settings {
    (
        $(#[doc = $config_doc:literal])+
        $Config:ident {
            $(
                $(#[doc = $top_doc:literal])+
                $top:ident: $Top:ty = $top_default:expr, $top_unit:literal, $top_bounds:expr
                $(, varies $top_varies:literal)?;
            )+
        }
        $(
            $(#[doc = $section_doc:literal])+
            $section:ident: $Section:ident {
                $(
                    $(#[doc = $doc:literal])+
                    $field:ident: $Type:ty = $default:expr, $unit:literal, $bounds:expr;
                )+
            }
        )+
    ) => {
        $(#[doc = $config_doc])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $Config {
            $($(#[doc = $top_doc])+ pub $top: $Top,)+
            $($(#[doc = $section_doc])+ pub $section: $Section,)+
        }

        impl Default for $Config {
            fn default() -> Self {
                Self { $($top: $top_default,)+ $($section: $Section::default(),)+ }
            }
        }

        $(
            $(#[doc = $section_doc])+
            #[derive(Clone, Debug, PartialEq)]
            pub struct $Section {
                $($(#[doc = $doc])+ pub $field: $Type,)+
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $($field: $default,)+ }
                }
            }
        )+

        /// Every setting, in the order of the file.
        pub static KEYS: &[Key] = &[
            $(Key {
                section: None,
                field: stringify!($top),
                suffix: <$Top as Setting>::SUFFIX,
                doc: &[$($top_doc),+],
                varies: [$(Some($top_varies),)? None][0],
                secret: <$Top as Setting>::SECRET,
                holds_secret: |config| config.$top.holds_secret(),
                equal: |one, other| one.$top == other.$top,
                expected: || <$Top as Setting>::expected(&$top_bounds, $top_unit),
                get: |config| config.$top.to_toml(),
                set: |config, given| store(&mut config.$top, given, &$top_bounds),
            },)+
            $($(Key {
                section: Some(stringify!($section)),
                field: stringify!($field),
                suffix: <$Type as Setting>::SUFFIX,
                doc: &[$($doc),+],
                varies: None,
                secret: <$Type as Setting>::SECRET,
                holds_secret: |config| config.$section.$field.holds_secret(),
                equal: |one, other| one.$section.$field == other.$section.$field,
                expected: || <$Type as Setting>::expected(&$bounds, $unit),
                get: |config| config.$section.$field.to_toml(),
                set: |config, given| store(&mut config.$section.$field, given, &$bounds),
            },)+)+
        ];

        /// The sections of the file with what each is about, in order.
        pub static SECTIONS: &[(&str, &[&str])] = &[$((stringify!($section), &[$($section_doc),+]),)+];
    };
}
pub(super) use settings;

/// Stores what was given; returns whether it was acceptable.
pub(super) fn store<T: Setting>(setting: &mut T, given: Given<'_>, bounds: &T::Bounds) -> bool {
    T::take(given, bounds).map(|value| *setting = value).is_some()
}
