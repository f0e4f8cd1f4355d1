//! Why **sbatch** said no: its words to a failure class, and what to do. Whether it said no at all, and whether a job may
//! exist all the same, is not decided here.

/// A refusal in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub class: &'static str,
    /// What sbatch said, on one line.
    pub error: String,
    /// Whether the same may be taken later.
    pub passes_by_itself: bool,
    pub what_to_do: &'static str,
}

const PROFILE: &str = "correct the profile, and retry";
const SITE: &str = "ask the site for access with this account, or correct the profile";
const LATER: &str = "retry later";

/// What sbatch says (Slurm's `slurm_strerror`), the class of it, and what to do.
const KNOWN: &[(&str, &str, bool, &str)] = &[
    ("Invalid account or account/partition combination", "authorization", false, SITE),
    ("Access/permission denied", "authorization", false, SITE),
    ("User's group not permitted to use this partition", "authorization", false, SITE),
    ("Invalid qos specification", "configuration", false, PROFILE),
    ("Invalid partition name specified", "configuration", false, PROFILE),
    ("Invalid feature specification", "configuration", false, PROFILE),
    ("Requested node configuration is not available", "configuration", false, PROFILE),
    ("Requested time limit is invalid", "configuration", false, PROFILE),
    ("Node count specification invalid", "configuration", false, PROFILE),
    ("More processors requested than permitted", "configuration", false, PROFILE),
    ("Memory required by task is not available", "configuration", false, PROFILE),
    ("Requested reservation is invalid", "configuration", false, PROFILE),
    ("Invalid directive found in batch script", "configuration", false, PROFILE),
    ("unrecognized option", "configuration", false, PROFILE),
    (
        "Job violates accounting/QOS policy",
        "rate_limited",
        true,
        "wait until fewer jobs are queued, or ask for less",
    ),
    ("temporarily unable to accept job", "dependency_unavailable", true, LATER),
    ("Unable to contact slurm controller", "dependency_unavailable", true, LATER),
    ("Required partition not available", "dependency_unavailable", true, LATER),
    ("Munge encode failed", "dependency_unavailable", true, LATER),
    ("No space left on device", "dependency_unavailable", true, "make room on the login node, and retry"),
];

/// Says a refusal in words; one we do not know is said as it is.
pub fn explain(stderr: &[u8]) -> Refusal {
    let error = super::table::said(stderr);
    let known = KNOWN.iter().find(|(words, ..)| error.contains(words));
    let (_, class, passes_by_itself, what_to_do) =
        known.copied().unwrap_or(("", "conflict", false, "see what sbatch said"));
    Refusal { class, error, passes_by_itself, what_to_do }
}
