//! What a site tells before a job is submitted: room for its files, accounts, maintenance.
//!
//! What a site does not tell is absent and no error: nothing here keeps a job from being submitted.

use chrono::{DateTime, Utc};

use super::{Cluster, word};
use crate::ssh::{Error, Output};

/// Room for files, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    pub file_system: String,
    pub total: u64,
    pub available: u64,
    /// Where the user has a quota there: what is left of it.
    pub quota_left: Option<u64>,
}

/// A time for which the site keeps nodes for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub name: String,
    pub start: DateTime<Utc>,
    pub end: DateTime<Utc>,
    pub nodes: String,
    pub partition: Option<String>,
}

/// What the site's accounting says of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    Ours {
        /// CPU minutes granted and used, where there is a limit.
        cpu_minutes: Option<(u64, u64)>,
    },
    /// The site lists accounts of this user, and this is none of them.
    NotOurs { ours: Vec<String> },
    /// The site tells nothing about this user.
    Untold,
}

impl Cluster {
    /// The room at `path`, or where it will be once it is made.
    pub async fn space(&self, path: &str) -> Result<Option<Space>, Error> {
        let line = format!(
            "d={}; while [ ! -e \"$d\" ] && [ \"$d\" != / ]; do d=$(dirname \"$d\"); done; df -Pk \"$d\"; \
             echo; quota -w -p 2>/dev/null; exit 0",
            word(path)?
        );
        Ok(space(&self.run(&line).await?.stdout_text()))
    }

    /// Maintenance that is planned or goes on, soonest first.
    pub async fn maintenance(&self) -> Result<Vec<Reservation>, Error> {
        let said = self.run("SLURM_TIME_FORMAT=%s scontrol show reservation --oneliner").await?;
        let mut found: Vec<_> = said.stdout_text().lines().filter_map(maintenance).collect();
        found.sort_by_key(|reservation| reservation.start);
        Ok(found)
    }

    /// What the site says of an account for our user.
    pub async fn account(&self, account: &str) -> Result<Account, Error> {
        let user = word(&self.target.user)?;
        let list = self.run(&format!("sacctmgr -nP show assoc where user={user} format=account")).await?;
        let ours: Vec<String> = lines(&list).map(str::to_owned).collect();
        if ours.is_empty() {
            return Ok(Account::Untold);
        }
        if !ours.iter().any(|name| name == account) {
            return Ok(Account::NotOurs { ours });
        }
        let share = format!("sshare -nP -A {} -o Account,User,GrpTRESMins,GrpTRESRaw", word(account)?);
        let share = self.run(&share).await?;
        Ok(Account::Ours { cpu_minutes: lines(&share).find_map(|line| cpu_minutes(line, account)) })
    }
}

/// The lines of a command that succeeded, each once.
fn lines(said: &Output) -> impl Iterator<Item = &str> {
    let text = if said.success() { std::str::from_utf8(&said.stdout).unwrap_or("") } else { "" };
    let mut seen: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    seen.sort_unstable();
    seen.dedup();
    seen.into_iter()
}

/// POSIX `df -Pk`, an empty line, and `quota -w -p` of Linux quota.
fn space(text: &str) -> Option<Space> {
    let (df, quota) = text.split_once("\n\n").unwrap_or((text, ""));
    let words: Vec<&str> = df.lines().nth(1)?.split_whitespace().collect();
    // Names of file systems may have spaces in them: the numbers come three in a row.
    let at = words.windows(3).position(|three| three.iter().all(|word| word.parse::<u64>().is_ok()))?;
    let kib = |word: &str| word.parse::<u64>().ok().map(|kib| kib.saturating_mul(1024));
    let file_system = words[..at].join(" ");
    let of_here = quota.lines().find_map(|line| line.trim_start().strip_prefix(&file_system));
    Some(Space {
        total: kib(words[at])?,
        available: kib(words[at + 2])?,
        quota_left: of_here.and_then(quota_left),
        file_system,
    })
}

/// `<used>[*] <soft> <hard> …` in KiB; 0 is no limit.
fn quota_left(row: &str) -> Option<u64> {
    let numbers: Vec<u64> =
        row.split_whitespace().map_while(|word| word.trim_end_matches('*').parse().ok()).take(3).collect();
    let [used, soft, hard] = numbers[..] else { return None };
    let limit = [hard, soft].into_iter().find(|limit| *limit > 0)?;
    Some(limit.saturating_sub(used).saturating_mul(1024))
}

/// A line of `scontrol show reservation --oneliner`, with times in seconds since 1970.
fn maintenance(line: &str) -> Option<Reservation> {
    let field = |name: &str| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
        (value != "(null)").then_some(value)
    };
    let time = |name| DateTime::from_timestamp(field(name)?.parse().ok()?, 0);
    field("Flags")?.split(',').find(|flag| *flag == "MAINT")?;
    Some(Reservation {
        name: field("ReservationName")?.to_owned(),
        start: time("StartTime")?,
        end: time("EndTime")?,
        nodes: field("Nodes").unwrap_or_default().to_owned(),
        partition: field("PartitionName").map(str::to_owned),
    })
}

/// Granted and used CPU minutes of an account's own line of `sshare`.
fn cpu_minutes(line: &str, account: &str) -> Option<(u64, u64)> {
    let mut fields = line.split('|');
    let (name, user, granted, used) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let cpu = |list: &str| list.split(',').find_map(|one| one.strip_prefix("cpu=")?.parse().ok());
    (name.trim() == account && user.is_empty()).then_some(())?;
    Some((cpu(granted)?, cpu(used)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DF: &str = "Filesystem     1024-blocks     Used Available Capacity Mounted on\n\
                      /dev/vda         264212084 43779748  51506140      46% /\n";

    #[test]
    fn room_is_read_with_and_without_a_quota() {
        let free = space(DF).unwrap();
        assert_eq!(
            (free.total, free.available, free.quota_left),
            (264_212_084 << 10, 51_506_140 << 10, None)
        );
        let quota = "\nDisk quotas for user u (uid 1): \n Filesystem blocks quota limit grace files quota limit grace\n";
        for (row, left) in [
            ("/dev/vda 600* 500 1000 0 10 0 0 0", Some(400 << 10)),
            ("/dev/vda 2000* 500 1000 0 10 0 0 0", Some(0)),
            ("/dev/vda 600 0 0 0 10 0 0 0", None),
            ("/dev/vdb 600 500 1000 0 10 0 0 0", None),
        ] {
            assert_eq!(space(&format!("{DF}{quota} {row}\n")).unwrap().quota_left, left, "{row}");
        }
        let lustre = "Filesystem 1024-blocks Used Available Capacity Mounted on\n10.1.1.1@o2ib:/my scratch 100 40 60 40% /scratch\n";
        assert_eq!(space(lustre).unwrap().file_system, "10.1.1.1@o2ib:/my scratch");
        assert_eq!(space("df: stale file handle\n"), None);
    }

    #[test]
    fn only_maintenance_is_maintenance() {
        let line = "ReservationName=m1 StartTime=1795396633 EndTime=1795400233 Duration=01:00:00 Nodes=vm NodeCnt=1 \
                    CoreCnt=4 Features=(null) PartitionName=(null) Flags=MAINT,SPEC_NODES,ALL_NODES TRES=cpu=4 State=INACTIVE";
        let found = maintenance(line).unwrap();
        assert_eq!((found.name.as_str(), found.nodes.as_str(), found.partition), ("m1", "vm", None));
        assert_eq!((found.end - found.start).num_minutes(), 60);
        assert_eq!(maintenance(&line.replace("MAINT,", "")), None);
        assert_eq!(maintenance(&line.replace("1795396633", "2026-11-23T01:00:00")), None);
        assert_eq!(maintenance("No reservations in the system"), None);
    }

    #[test]
    fn an_allocation_is_the_accounts_own_and_not_a_users() {
        let line = "survey||cpu=1000,mem=5|cpu=12,mem=0";
        assert_eq!(cpu_minutes(line, "survey"), Some((1000, 12)));
        assert_eq!(cpu_minutes("survey|me|cpu=1000|cpu=12", "survey"), None);
        assert_eq!(cpu_minutes("survey|||cpu=12", "survey"), None);
    }
}
