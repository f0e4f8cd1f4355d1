//! Runs the binary with an environment of its own.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What came of a run.
#[derive(Debug, PartialEq)]
pub struct Ran {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }
}

/// The binary, with no configuration from outside.
pub fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beampipe"));
    command.current_dir(directory).env_clear().stdin(Stdio::null());
    command
}

pub fn ran(output: Output) -> Ran {
    Ran {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub fn beampipe(directory: &Path, arguments: &[&str]) -> Ran {
    ran(command(directory).args(arguments).output().expect("the binary runs"))
}

/// With something on standard input.
pub fn beampipe_with(directory: &Path, arguments: &[&str], input: &[u8]) -> Ran {
    let mut child = command(directory)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // It may end without reading all of it.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("the writer ends");
    ran(output)
}
