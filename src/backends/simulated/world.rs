//! Where simulated sessions live: in memory, for tests of one process, or in a directory, which outlives processes and which
//! several may share.
//!
//! A session in a directory is a directory of its name, made by `mkdir`, which one of several contenders wins; what happens to
//! it are files that are made once.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The sessions of simulated backends.
#[derive(Debug, Clone)]
pub enum World {
    Memory(Arc<Mutex<HashMap<String, Held>>>),
    Directory(PathBuf),
}

/// A session in memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Held {
    drops: usize,
    deployed: Option<Instant>,
    cancelled: bool,
}

/// A session as it is now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Session {
    /// 0 before it has a graph.
    pub drops: usize,
    /// Since its deployment.
    pub running_for: Option<Duration>,
    pub cancelled: bool,
}

impl Default for World {
    fn default() -> Self {
        Self::Memory(Arc::default())
    }
}

/// Whether a step that can be done once was done now.
pub type Once = io::Result<bool>;

impl World {
    /// How many sessions there are, to be compared with how many attempts were made.
    pub fn sessions(&self) -> usize {
        match self {
            Self::Memory(held) => held.lock().len(),
            Self::Directory(root) => fs::read_dir(root).map_or(0, Iterator::count),
        }
    }

    /// Takes a name; `false` when it is taken.
    pub fn take(&self, name: &str) -> Once {
        match self {
            Self::Memory(held) => {
                let mut held = held.lock();
                if held.contains_key(name) {
                    return Ok(false);
                }
                held.insert(name.to_owned(), Held::default());
                Ok(true)
            }
            Self::Directory(root) => {
                fs::create_dir_all(root)?;
                match fs::create_dir(root.join(name)) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                    made => made.map(|()| true),
                }
            }
        }
    }

    /// Gives a session its graph; `false` when it has one.
    pub fn fill(&self, name: &str, drops: usize) -> Once {
        match self {
            Self::Memory(held) => Ok(held.lock().get_mut(name).is_some_and(|session| {
                let empty = session.drops == 0;
                if empty {
                    session.drops = drops;
                }
                empty
            })),
            Self::Directory(root) => once(&root.join(name), "graph", &drops.to_string()),
        }
    }

    /// Starts a session; `false` when it was started before.
    pub fn deploy(&self, name: &str) -> Once {
        match self {
            Self::Memory(held) => Ok(held.lock().get_mut(name).is_some_and(|session| {
                let idle = session.deployed.is_none();
                session.deployed.get_or_insert_with(Instant::now);
                idle
            })),
            Self::Directory(root) => once(&root.join(name), "deployed", ""),
        }
    }

    pub fn cancel(&self, name: &str) -> Once {
        match self {
            Self::Memory(held) => Ok(held
                .lock()
                .get_mut(name)
                .is_some_and(|session| !std::mem::replace(&mut session.cancelled, true))),
            Self::Directory(root) => once(&root.join(name), "cancelled", ""),
        }
    }

    /// Frees a name; `false` when nobody has it.
    pub fn forget(&self, name: &str) -> Once {
        match self {
            Self::Memory(held) => Ok(held.lock().remove(name).is_some()),
            Self::Directory(root) => match fs::remove_dir_all(root.join(name)) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
                gone => gone.map(|()| true),
            },
        }
    }

    pub fn find(&self, name: &str) -> io::Result<Option<Session>> {
        let root = match self {
            Self::Memory(held) => {
                return Ok(held.lock().get(name).map(|held| Session {
                    drops: held.drops,
                    running_for: held.deployed.map(|at| at.elapsed()),
                    cancelled: held.cancelled,
                }));
            }
            Self::Directory(root) => root.join(name),
        };
        if !root.is_dir() {
            return Ok(None);
        }
        let drops = match fs::read_to_string(root.join("graph")) {
            Ok(count) => count.trim().parse().unwrap_or(0),
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let deployed = fs::metadata(root.join("deployed")).and_then(|found| found.modified());
        // A clock that was set back makes a session run a little longer.
        let running_for = deployed.ok().map(|at| at.elapsed().unwrap_or_default());
        Ok(Some(Session { drops, running_for, cancelled: root.join("cancelled").exists() }))
    }
}

/// Makes a file that must not be there; `false` when it is. The content is there as soon as the file is.
fn once(session: &Path, what: &str, content: &str) -> Once {
    if !session.is_dir() {
        return Err(ErrorKind::NotFound.into());
    }
    let name = session.join(what);
    let draft = session.join(format!(".{what}.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&draft)?;
    file.write_all(content.as_bytes())?;
    let linked = fs::hard_link(&draft, &name);
    fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        linked => linked.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(check: impl Fn(World)) {
        check(World::default());
        let directory = tempfile::tempdir().unwrap();
        check(World::Directory(directory.path().join("simulated")));
    }

    #[test]
    fn every_step_of_a_session_is_done_once() {
        each(|world| {
            assert_eq!(world.find("a").unwrap(), None);
            assert!(world.take("a").unwrap() && !world.take("a").unwrap());
            assert_eq!(world.find("a").unwrap(), Some(Session::default()));
            assert!(world.fill("a", 3).unwrap() && !world.fill("a", 4).unwrap());
            assert!(world.deploy("a").unwrap() && !world.deploy("a").unwrap());
            let running = world.find("a").unwrap().unwrap();
            assert!(running.drops == 3 && running.running_for.is_some() && !running.cancelled);
            assert!(world.cancel("a").unwrap() && !world.cancel("a").unwrap());
            assert!(world.find("a").unwrap().unwrap().cancelled);
            assert_eq!(world.sessions(), 1);
            assert!(world.forget("a").unwrap() && !world.forget("a").unwrap());
            assert_eq!((world.find("a").unwrap(), world.sessions()), (None, 0));
        });
    }

    #[test]
    fn of_many_that_take_a_name_at_once_one_gets_it() {
        each(|world| {
            let won = std::thread::scope(|scope| {
                let contenders: Vec<_> = (0..16).map(|_| scope.spawn(|| world.take("b").unwrap())).collect();
                contenders.into_iter().map(|one| usize::from(one.join().unwrap())).sum::<usize>()
            });
            assert_eq!(won, 1);
        });
    }
}
