//! Why a job **waits**, in words: Slurm's reason, whether it passes by itself, and what to do
//! (`man squeue`, "Job reason codes"; slurm.schedmd.com/job_reason_codes).

/// A reason in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    pub sentence: String,
    /// Whether the job will start if nobody does anything.
    pub passes_by_itself: bool,
    pub what_to_do: &'static str,
}

const WAIT: &str = "wait";
const SITE: &str = "ask the site; cancel and retry elsewhere if it takes too long";
const PROFILE: &str = "cancel, correct the profile, and retry";
const RELEASE: &str = "release it with `scontrol release`, or cancel and retry";

/// Says a reason of squeue in words; one we do not know is said as it is.
pub fn explain(reason: &str) -> Reason {
    let reason = reason.trim().trim_start_matches('(').trim_end_matches(')');
    let (head, more) = reason.split_once([',', ':']).unwrap_or((reason, ""));
    let (sentence, passes_by_itself, what_to_do) = known(head.trim(), more.trim())
        .or_else(|| limit(head.trim()))
        .unwrap_or_else(|| (format!("the job waits; Slurm says: {reason}"), false, SITE));
    Reason { sentence, passes_by_itself, what_to_do }
}

type Said = (String, bool, &'static str);

fn known(head: &str, more: &str) -> Option<Said> {
    if head == "ReqNodeNotAvail" || head == "Nodes required for job are DOWN" {
        return Some(unavailable(head, more));
    }
    let lower = head.to_ascii_lowercase();
    if lower.contains("requeued held")
        || lower.contains("requeued in held state")
        || head == "JobHoldMaxRequeue"
    {
        return Some(("the job could not be launched, was queued again and is held".into(), false, RELEASE));
    }
    let (sentence, passes, what) = match head {
        "None" | "" => ("the job has just been queued and not been considered yet", true, WAIT),
        "Priority" => ("jobs of higher priority are ahead", true, WAIT),
        "Resources" => ("it is next, as soon as its nodes are free", true, WAIT),
        "Dependency" => ("it waits for another job to end", true, WAIT),
        "DependencyNeverSatisfied" => {
            ("the job it depends on did not end as it must", false, "cancel and retry")
        }
        "BeginTime" => ("its earliest start time has not come", true, WAIT),
        "Prolog" => ("the site's prolog runs on its nodes", true, WAIT),
        "Cleaning" => ("what it left behind when it was requeued is being cleaned up", true, WAIT),
        "SchedDefer" | "FedJobLock" => ("the scheduler will consider it in its next round", true, WAIT),
        "Licenses" => ("licenses that it needs are in use", true, WAIT),
        "JobArrayTaskLimit" => ("as many tasks of its array run as may run at once", true, WAIT),
        "Reservation" => ("its reservation has not begun", true, WAIT),
        "BurstBufferResources" | "BurstBufferStageIn" => ("the burst buffer is not ready for it", true, WAIT),
        "NodeDown" => ("a node that it needs is down", true, SITE),
        "FrontEndDown" => ("no front end node is available", true, SITE),
        "PartitionDown" | "PartitionInactive" => ("its partition does not start jobs now", true, SITE),
        "JobHeldUser" => ("the remote user holds it", false, RELEASE),
        "JobHeldAdmin" => ("an administrator holds it", false, "ask the site why"),
        "ReservationDeleted" => ("its reservation was deleted, so it is held", false, RELEASE),
        "PartitionNodeLimit" => ("it asks for more or fewer nodes than its partition allows", false, PROFILE),
        "PartitionTimeLimit" => ("it asks for more time than its partition allows", false, PROFILE),
        "PartitionConfig" => ("its partition does not allow what it asks for", false, PROFILE),
        "BadConstraints" => ("no node can have what it asks for", false, PROFILE),
        "MaxMemPerLimit" => ("it asks for more memory than a job may have", false, PROFILE),
        "InvalidAccount" => ("its account does not exist or may not be used", false, PROFILE),
        "AccountNotAllowed" => ("its account may not use this partition", false, PROFILE),
        "InvalidQOS" => ("its quality of service does not exist or may not be used", false, PROFILE),
        "QOSNotAllowed" => ("its quality of service may not be used in this partition", false, PROFILE),
        "QOSUsageThreshold" => ("the usage of its quality of service is over a threshold", true, WAIT),
        "DeadLine" | "Deadline" => ("it cannot end before its deadline", false, "cancel and retry"),
        "SystemFailure" | "BurstBufferOperation" => ("the site's system failed", false, SITE),
        "JobLaunchFailure" => ("it could not be launched", false, SITE),
        "NonZeroExitCode" | "RaisedSignal" | "TimeLimit" | "InactiveLimit" | "OutOfMemory" => {
            return Some((format!("it has ended: {head}"), false, "see how it ended"));
        }
        _ => return None,
    };
    Some((sentence.to_owned(), passes, what))
}

fn unavailable(head: &str, more: &str) -> Said {
    let lower = more.to_ascii_lowercase();
    if lower.contains("maintenance") {
        const SHORTER: &str = "wait for its end, or ask for less time so that the job ends before it";
        return ("its nodes are reserved for maintenance".to_owned(), true, SHORTER);
    }
    if head.starts_with("Nodes") || lower.contains("reserved") {
        return ("its nodes are down, drained or reserved for other jobs".to_owned(), true, WAIT);
    }
    let nodes = more.split_once(':').map_or(more, |(_, nodes)| nodes).trim();
    let which = if nodes.is_empty() { String::new() } else { format!(": {nodes}") };
    (format!("nodes that it needs are not available{which}"), true, SITE)
}

/// The limits of an association (`Assoc…`), of a quality of service (`QOS…`), of an account (`Max…PerAccount`), built of
/// whose limit it is, of what, and over what it is counted.
fn limit(head: &str) -> Option<Said> {
    const USED_UP: &str = "ask the site for more, use another account, or wait for the next period";
    let (whose, rest) = match head {
        _ if head.starts_with("AssocGrp") => ("the account's group", &head[8..]),
        _ if head.starts_with("AssocMax") => ("the account", &head[8..]),
        _ if head.starts_with("Association") => ("the account", &head[11..]),
        _ if head.starts_with("QOSGrp") => ("everybody in the quality of service", &head[6..]),
        _ if head.starts_with("QOSMin") => {
            let of = what(&head[6..]);
            return Some((
                format!("it asks for less than its quality of service wants: {of}"),
                false,
                PROFILE,
            ));
        }
        _ if head.starts_with("QOSMax") => ("the quality of service", &head[6..]),
        _ if head.starts_with("QOS") => ("the quality of service", &head[3..]),
        _ if head.starts_with("Max") && head.ends_with("PerAccount") => ("the account", &head[3..]),
        "AccountingPolicy" => return Some(("a limit of accounting is reached".into(), true, WAIT)),
        _ => return None,
    };
    let of = what(rest);
    let group = head.contains("Grp");
    let used_up = rest.contains("Minutes") && !rest.contains("RunMinutes") && !rest.contains("PerJob");
    Some(match () {
        () if used_up => {
            (format!("the {of} allocated to {whose} for this period are used up"), false, USED_UP)
        }
        () if rest.contains("PerJob") || rest.contains("PerNode") => {
            (format!("it asks for more {of} than {whose} allows a job"), false, PROFILE)
        }
        () if rest.contains("Wall") && group => {
            (format!("the {of} allocated to {whose} is used up"), false, USED_UP)
        }
        () => (format!("{whose} is at its limit of {of}"), true, WAIT),
    })
}

fn what(rest: &str) -> &'static str {
    for (part, word) in [
        ("Submit", "submitted jobs"),
        ("Job", "running jobs"),
        ("Wall", "wall time"),
        ("Time", "time"),
        ("Mem", "memory"),
        ("Node", "nodes"),
        ("GRES", "special resources (GRES)"),
        ("Lic", "licenses"),
        ("Energy", "energy"),
        ("BB", "burst buffer"),
        ("Billing", "billing units"),
    ] {
        // `PerJob` and `PerNode` say over what it is counted.
        if rest.replace("PerJob", "").replace("PerNode", "").contains(part) {
            return word;
        }
    }
    if rest.to_ascii_uppercase().contains("CPU") {
        return if rest.contains("Minutes") { "processor minutes" } else { "processors" };
    }
    "resources"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_told_from_what_does_not() {
        for (reason, passes) in [
            ("Priority", true),
            ("Resources", true),
            ("Dependency", true),
            ("DependencyNeverSatisfied", false),
            ("ReqNodeNotAvail, UnavailableNodes:node[1-3]", true),
            ("ReqNodeNotAvail, Reserved for maintenance", true),
            (
                "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
                true,
            ),
            ("QOSMaxJobsPerUserLimit", true),
            ("QOSMaxCpuPerUserLimit", true),
            ("QOSMaxMemoryPerJob", false),
            ("QOSMaxWallDurationPerJobLimit", false),
            ("QOSMinCpuNotSatisfied", false),
            ("QOSGrpNodeLimit", true),
            ("QOSJobLimit", true),
            ("AssocGrpCpuLimit", true),
            ("AssocGrpCPUMinutesLimit", false),
            ("AssocGrpCPURunMinutesLimit", true),
            ("AssocMaxJobsLimit", true),
            ("AssocMaxNodePerJobLimit", false),
            ("AssocMaxWallDurationPerJobLimit", false),
            ("AssocGrpBillingMinutes", false),
            ("AssociationJobLimit", true),
            ("MaxMemoryPerAccount", true),
            ("PartitionTimeLimit", false),
            ("PartitionNodeLimit", false),
            ("PartitionDown", true),
            ("JobHeldUser", false),
            ("JobHeldAdmin", false),
            ("BeginTime", true),
            ("Licenses", true),
            ("InvalidAccount", false),
            ("InvalidQOS", false),
            ("BadConstraints", false),
            ("JobArrayTaskLimit", true),
            ("launch failed requeued held", false),
            ("job requeued in held state", false),
            ("None", true),
        ] {
            let said = explain(reason);
            assert_eq!(said.passes_by_itself, passes, "{reason}: {}", said.sentence);
            assert!(!said.sentence.contains("Slurm says"), "{reason} is not known");
            assert_eq!(explain(&format!("({reason})")), said, "with the parentheses of %R");
        }
    }

    #[test]
    fn a_limit_is_said_by_whose_it_is_and_of_what() {
        for (reason, sentence) in [
            (
                "AssocGrpCPUMinutesLimit",
                "the processor minutes allocated to the account's group for this period are used up",
            ),
            ("QOSMaxMemoryPerJob", "it asks for more memory than the quality of service allows a job"),
            ("AssocMaxJobsLimit", "the account is at its limit of running jobs"),
            ("AssocMaxNodePerJobLimit", "it asks for more nodes than the account allows a job"),
            ("QOSMinCpuNotSatisfied", "it asks for less than its quality of service wants: processors"),
            (
                "ReqNodeNotAvail, UnavailableNodes:node[1-3]",
                "nodes that it needs are not available: node[1-3]",
            ),
        ] {
            assert_eq!(explain(reason).sentence, sentence);
        }
    }

    #[test]
    fn a_reason_that_is_not_known_is_said_as_it_is() {
        let said = explain("PhaseOfTheMoon");
        assert_eq!(said.sentence, "the job waits; Slurm says: PhaseOfTheMoon");
        assert!(!said.passes_by_itself);
    }
}
