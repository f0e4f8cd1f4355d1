//! **Quoting** for a POSIX shell, here and on the login node. What a user gave reaches a shell only through [`quote`]; what
//! [`Command`] takes unquoted is a word of this program's text.
//!
//! Invariant: a shell gives every quoted string back byte for byte (`a_shell_gives_every_string_back`). The login shell at
//! the other end has to be one of POSIX's; csh and fish read quotes in their own ways.

/// A string that no shell can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} contains a NUL byte, which no command line can hold")]
pub struct Nul(String);

/// One word for a shell, whatever is in it.
pub fn quote(text: &str) -> Result<String, Nul> {
    if text.contains('\0') {
        return Err(Nul(text.to_owned()));
    }
    let plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'/' | b':' | b'-' | b',' | b'@');
    if !text.is_empty() && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// A command line in the making.
#[derive(Debug, Clone, Default)]
pub struct Command {
    text: String,
    wrong: Option<Nul>,
}

impl Command {
    pub fn new(program: &'static str) -> Self {
        Self { text: program.to_owned(), wrong: None }
    }

    /// Words of ours, as they are: operators and redirections too.
    pub fn raw(mut self, words: &'static str) -> Self {
        self.text.push(' ');
        self.text.push_str(words);
        self
    }

    /// One argument, quoted.
    pub fn arg(mut self, value: &str) -> Self {
        self.text.push(' ');
        self.push(value);
        self
    }

    /// `--name=value`, so that a value that begins with a dash stays a value.
    pub fn option(mut self, name: &'static str, value: &str) -> Self {
        self.text.push(' ');
        self.text.push_str(name);
        self.text.push('=');
        self.push(value);
        self
    }

    /// This, and if it succeeded the next.
    pub fn and(mut self, next: Command) -> Self {
        self.text.push_str(" && ");
        self.text.push_str(&next.text);
        self.wrong = self.wrong.or(next.wrong);
        self
    }

    /// The whole line.
    pub fn line(self) -> Result<String, Nul> {
        self.wrong.map_or(Ok(self.text), Err)
    }

    fn push(&mut self, value: &str) {
        match quote(value) {
            Ok(word) => self.text.push_str(&word),
            Err(nul) => self.wrong = self.wrong.take().or(Some(nul)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn given_back(words: &[String]) -> Vec<u8> {
        let mut command = Command::new("printf").raw("'%s\\n'");
        for word in words {
            command = command.arg(word);
        }
        let line = command.line().unwrap();
        let done = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    }

    fn as_lines(words: &[String]) -> Vec<u8> {
        words.iter().flat_map(|word| word.bytes().chain([b'\n'])).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_shell_gives_every_string_back(
            words in prop::collection::vec(
                prop_oneof!["[^\u{0}]{0,20}", "[ '\"$`\\\\\n~*?!#;&|<>(){}=%-]{0,12}"], 1..8
            )
        ) {
            prop_assert_eq!(given_back(&words), as_lines(&words));
        }
    }

    #[test]
    fn what_a_shell_would_read_is_given_back_as_it_was() {
        let words = [
            "",
            "'",
            "''",
            "a b",
            "$HOME",
            "`id`",
            "$(id)",
            "-n",
            "--help",
            "\n",
            "a\nb\n",
            "~",
            "*",
            "\\",
            "\\'",
            "!!",
            "ünï",
            "🛰",
            "x;rm -rf /",
            "a=b",
            "%s",
            "\u{1b}[2J",
        ]
        .map(str::to_owned);
        assert_eq!(given_back(&words), as_lines(&words));
    }

    #[test]
    fn a_nul_byte_is_refused_wherever_it_stands() {
        assert!(quote("a\0b").is_err());
        let line = Command::new("ls").and(Command::new("cat").option("--x", "\0").arg("fine")).line();
        assert!(line.unwrap_err().to_string().contains("NUL"));
    }

    #[test]
    fn an_option_keeps_its_value() {
        let line = Command::new("sbatch").option("--comment", "-x y").and(Command::new("true")).line();
        assert_eq!(line.unwrap(), "sbatch --comment='-x y' && true");
    }
}
