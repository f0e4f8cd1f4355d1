//! What every event payload derives.

/// Declares event payloads. Each has a `Default`, which is what a redacted event is read as: its type still says what
/// happened, its fields are blank. Absent optional fields are not stored.
macro_rules! payload {
    ($($(#[$meta:meta])* pub struct $name:ident { $($body:tt)* })*) => {
        $(
            #[serde_with::skip_serializing_none]
            #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
            $(#[$meta])*
            pub struct $name { $($body)* }
        )*
    };
}

/// Declares a closed set of words with one spelling for JSON, labels and people.
macro_rules! words {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        $(#[$meta])*
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant),* }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
