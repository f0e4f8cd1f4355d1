//! What a **job** is called and how it stands, in Slurm's own words (22.05 to 25.05, `job_state_codes`).
//!
//! Invariant: a word that is not known is no end ([`State::Other`]). A flag such as COMPLETING or REQUEUED is no end either:
//! the job holds nodes still, or comes back.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The id of a job as squeue and sacct write it: `6`, `6_3` (task of an array), `6_[0-3%2]` (its tasks that wait), `7+1`
/// (component of a heterogeneous job).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Id {
    /// What `sbatch` answered with.
    pub base: u64,
    pub part: Part,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Whole,
    Task(u64),
    /// As Slurm writes the set, with a limit behind `%`.
    Tasks(String),
    Component(u64),
}

impl Id {
    pub fn whole(base: u64) -> Self {
        Self { base, part: Part::Whole }
    }
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let odd = || format!("{text:?} is no id of a job");
        let number = |digits: &str| match digits.bytes().all(|b| b.is_ascii_digit()) {
            true => digits.parse::<u64>().map_err(|_| odd()),
            false => Err(odd()),
        };
        let at = text.find(['_', '+']).unwrap_or(text.len());
        let (base, rest) = text.split_at(at);
        let part = match rest.split_at_checked(1) {
            None => Part::Whole,
            Some(("+", component)) => Part::Component(number(component)?),
            Some((_, tasks)) => match tasks.strip_prefix('[') {
                None => Part::Task(number(tasks)?),
                Some(set) => {
                    let set = set.strip_suffix(']').ok_or_else(odd)?;
                    let fits = |c: char| c.is_ascii_digit() || matches!(c, ',' | '-' | ':' | '%' | '.');
                    if set.is_empty() || !set.chars().all(fits) {
                        return Err(odd());
                    }
                    Part::Tasks(set.to_owned())
                }
            },
        };
        Ok(Self { base: number(base)?, part })
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.part {
            Part::Whole => write!(f, "{}", self.base),
            Part::Task(task) => write!(f, "{}_{task}", self.base),
            Part::Tasks(set) => write!(f, "{}_[{set}]", self.base),
            Part::Component(component) => write!(f, "{}+{component}", self.base),
        }
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for Id {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

macro_rules! states {
    ($($name:ident = $word:literal $short:literal,)*) => {
        /// How a job stands.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub enum State {
            $($name,)*
            /// With the user id that ended it, where accounting tells.
            Cancelled { by: Option<u32> },
            /// A word we do not know: no end.
            Other(String),
        }

        const WORDS: &[(&str, &str, State)] = &[
            $(($word, $short, State::$name),)*
            ("CANCELLED", "CA", State::Cancelled { by: None }),
        ];

        impl State {
            /// The word as Slurm writes it in full.
            pub fn word(&self) -> &str {
                match self {
                    $(State::$name => $word,)*
                    State::Cancelled { .. } => "CANCELLED",
                    State::Other(word) => word,
                }
            }
        }
    };
}

states! {
    Pending = "PENDING" "PD",
    Running = "RUNNING" "R",
    Suspended = "SUSPENDED" "S",
    Completed = "COMPLETED" "CD",
    Failed = "FAILED" "F",
    Timeout = "TIMEOUT" "TO",
    NodeFail = "NODE_FAIL" "NF",
    Preempted = "PREEMPTED" "PR",
    BootFail = "BOOT_FAIL" "BF",
    Deadline = "DEADLINE" "DL",
    OutOfMemory = "OUT_OF_MEMORY" "OOM",
    Completing = "COMPLETING" "CG",
    Configuring = "CONFIGURING" "CF",
    Expediting = "EXPEDITING" "EX",
    LaunchFailed = "LAUNCH_FAILED" "LF",
    PowerUpNode = "POWER_UP_NODE" "PU",
    ReconfigFail = "RECONFIG_FAIL" "RCF",
    Requeued = "REQUEUED" "RQ",
    RequeueFed = "REQUEUE_FED" "RF",
    RequeueHold = "REQUEUE_HOLD" "RH",
    Resizing = "RESIZING" "RS",
    ResvDelHold = "RESV_DEL_HOLD" "RD",
    Revoked = "REVOKED" "RV",
    Signaling = "SIGNALING" "SI",
    SpecialExit = "SPECIAL_EXIT" "SE",
    StageOut = "STAGE_OUT" "SO",
    Stopped = "STOPPED" "ST",
}

impl State {
    /// Whether the job has ended and does not come back by itself.
    pub fn is_terminal(&self) -> bool {
        use State::*;
        matches!(
            self,
            Completed
                | Cancelled { .. }
                | Failed
                | Timeout
                | NodeFail
                | Preempted
                | BootFail
                | Deadline
                | OutOfMemory
        )
    }

    /// The word operators see as `scheduler_state`.
    pub fn scheduler_state(&self) -> &'static str {
        use State::*;
        match self {
            Pending | Configuring | Expediting | LaunchFailed | PowerUpNode | ReconfigFail | Requeued
            | RequeueFed | RequeueHold | ResvDelHold | Revoked | SpecialExit => "pending",
            Running | Suspended | Completing | Resizing | Signaling | StageOut | Stopped => "running",
            Completed => "succeeded",
            Cancelled { .. } => "cancelled",
            Timeout | Deadline => "timed_out",
            Failed | NodeFail | Preempted | BootFail | OutOfMemory => "failed",
            Other(_) => "unknown",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Cancelled { by: Some(uid) } => write!(f, "CANCELLED by {uid}"),
            other => f.write_str(other.word()),
        }
    }
}

impl FromStr for State {
    type Err = String;

    /// Reads the word in full, cut off (`COMPLETI`, `CANCELLED+`) or in its short form. A word in Slurm's manner that we do
    /// not know is [`State::Other`]; anything else is no state.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(uid) = text.strip_prefix("CANCELLED by ") {
            return match uid.trim_end_matches('+').parse() {
                Ok(uid) => Ok(State::Cancelled { by: Some(uid) }),
                Err(_) => Err(format!("{text:?} names no user id")),
            };
        }
        let cut = text.strip_suffix('+').unwrap_or(text);
        if let Some((.., state)) = WORDS.iter().find(|(word, short, _)| *word == cut || *short == cut) {
            return Ok(state.clone());
        }
        let fits = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        if cut.is_empty() || !cut.chars().all(fits) {
            return Err(format!("{text:?} is no state of a job"));
        }
        let mut begun = WORDS.iter().filter(|(word, ..)| cut.len() >= 5 && word.starts_with(cut));
        match (begun.next(), begun.next()) {
            (Some((.., state)), None) => Ok(state.clone()),
            _ => Ok(State::Other(cut.to_owned())),
        }
    }
}

impl From<State> for String {
    fn from(state: State) -> String {
        state.to_string()
    }
}

impl TryFrom<String> for State {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_id_is_read_and_written_the_same() {
        for text in ["6", "6_3", "6_[0-3%2]", "6_[0,4-9:2]", "7+1", "4294967290"] {
            assert_eq!(text.parse::<Id>().unwrap().to_string(), text);
        }
        for text in ["", "x", "6_", "6_[", "6_[]", "+1", "6+", "-6", "6_[a]", "6.batch", "６", "6 "] {
            assert!(text.parse::<Id>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_word_is_read_in_full_and_in_short() {
        for (word, short, state) in WORDS {
            assert_eq!(word.parse::<State>().as_ref(), Ok(state));
            assert_eq!(short.parse::<State>().as_ref(), Ok(state));
            assert_eq!(state.to_string(), *word);
        }
        let shorts: std::collections::BTreeSet<_> = WORDS.iter().map(|(_, short, _)| short).collect();
        assert_eq!(shorts.len(), WORDS.len());
    }

    #[test]
    fn a_word_that_was_cut_off_is_read_when_only_one_begins_so() {
        for (cut, whole) in [
            ("COMPLETI", "COMPLETING"),
            ("OUT_OF_ME+", "OUT_OF_MEMORY"),
            ("CANCELLED+", "CANCELLED"),
            ("NODE_FAI", "NODE_FAIL"),
        ] {
            assert_eq!(cut.parse::<State>().unwrap().to_string(), whole);
        }
        for cut in ["COMPLET", "REQUEUE", "RE", "COMP"] {
            assert_eq!(
                cut.parse::<State>(),
                Ok(State::Other(cut.into())),
                "several begin so, or it is too short"
            );
        }
    }

    #[test]
    fn a_word_that_is_not_known_is_kept_and_is_no_end() {
        let state: State = "HIBERNATED".parse().unwrap();
        assert_eq!(
            (state.word(), state.is_terminal(), state.scheduler_state()),
            ("HIBERNATED", false, "unknown")
        );
        for odd in ["", "Wartend", "läuft", "CANCELLED by root", "slurm_load_jobs error"] {
            assert!(odd.parse::<State>().is_err(), "{odd:?}");
        }
    }

    #[test]
    fn who_cancelled_is_kept() {
        assert_eq!("CANCELLED by 1002".parse(), Ok(State::Cancelled { by: Some(1002) }));
        assert_eq!(State::Cancelled { by: Some(1002) }.to_string(), "CANCELLED by 1002");
    }

    #[test]
    fn what_comes_back_or_still_holds_nodes_has_not_ended() {
        for word in
            ["COMPLETING", "REQUEUED", "SPECIAL_EXIT", "REVOKED", "STAGE_OUT", "LAUNCH_FAILED", "SUSPENDED"]
        {
            assert!(!word.parse::<State>().unwrap().is_terminal(), "{word}");
        }
        let ends = WORDS.iter().filter(|(.., state)| state.is_terminal()).count();
        assert_eq!(ends, 9);
    }
}
