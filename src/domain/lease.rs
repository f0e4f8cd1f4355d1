//! A **lease** on a role that one process plays at a time. Stream `lease-{role}`; the one role is `scheduler`.
//!
//! Free ─Take→ Held ─Release→ Free
//!             Held ─Take (the holder's heartbeat has stood still)→ Held
//!
//! Invariants: only the present claim releases (`only_the_holder_releases`); a held lease is taken over only by naming the
//! claim it is taken from (`a_takeover_names_the_claim_it_replaces`), so that of several contenders one wins. Whether the
//! holder lives is presence, judged by the contender's own clock. What a holder does is a command to some other decider:
//! two that think they hold it cost refused appends and nothing else.

use uuid::Uuid;

use crate::{Aggregate, INSTALLATION, Rejection};

/// The role of whoever says what is to be done.
pub const SCHEDULER: &str = "scheduler";

payload! {
    /// `lease.taken`
    pub struct Taken {
        pub role: String,
        /// The process that beats under this name.
        pub holder: String,
        pub claim_id: Uuid,
        /// The claim whose holder fell silent.
        pub taken_from: Option<Uuid>,
        /// For how long it was silent, in seconds.
        pub silent_seconds: Option<u64>,
    }

    /// `lease.released`, by an orderly stop.
    pub struct Released {
        pub role: String,
        pub claim_id: Uuid,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Taken(Taken),
    Released(Released),
}

#[derive(Clone, Debug)]
pub enum Command {
    Take(Taken),
    Release { role: String, claim_id: Uuid },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Lease {
    #[default]
    Free,
    Held {
        holder: String,
        claim_id: Uuid,
    },
}

impl Aggregate for Lease {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "lease";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (self, command) {
            (Self::Held { claim_id, .. }, Command::Take(taken)) if *claim_id == taken.claim_id => Ok(vec![]),
            (Self::Held { holder, claim_id }, Command::Take(taken))
                if taken.taken_from != Some(*claim_id) =>
            {
                Err(Rejection::new("lease-lost", format!("{holder} holds the lease with another claim")))
            }
            (Self::Free, Command::Take(taken)) if taken.taken_from.is_some() => {
                Err(Rejection::new("lease-lost", "the claim to take over from has ended"))
            }
            (_, Command::Take(taken)) => Ok(vec![Event::Taken(taken)]),
            (Self::Held { claim_id: present, .. }, Command::Release { role, claim_id })
                if *present == claim_id =>
            {
                Ok(vec![Event::Released(Released { role, claim_id })])
            }
            // Somebody else took it over, or it is free already.
            (_, Command::Release { .. }) => Ok(vec![]),
        }
    }

    fn evolve(self, event: &Event) -> Self {
        match event {
            Event::Taken(taken) => Self::Held { holder: taken.holder.clone(), claim_id: taken.claim_id },
            Event::Released(_) => Self::Free,
        }
    }

    fn tags(&self, _id: &str, _event: &Event) -> Vec<String> {
        vec![INSTALLATION.to_owned()]
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Lease(event) => Some(event),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::given;

    fn take(claim: u128, taken_from: Option<u128>) -> Command {
        Command::Take(Taken {
            role: "scheduler".into(),
            holder: format!("p{claim}"),
            claim_id: Uuid::from_u128(claim),
            taken_from: taken_from.map(Uuid::from_u128),
            silent_seconds: None,
        })
    }

    fn release(claim: u128) -> Command {
        Command::Release { role: "scheduler".into(), claim_id: Uuid::from_u128(claim) }
    }

    #[test]
    fn a_takeover_names_the_claim_it_replaces() {
        let held = given::<Lease>([take(1, None)]);
        assert_eq!(held.decide(take(2, None)).unwrap_err().code, "lease-lost");
        assert_eq!(held.decide(take(2, Some(3))).unwrap_err().code, "lease-lost");
        let taken = given::<Lease>([take(1, None), take(2, Some(1))]);
        assert_eq!(taken.decide(take(3, Some(1))).unwrap_err().code, "lease-lost");
        let free = given::<Lease>([take(1, None), release(1)]);
        assert_eq!(free.decide(take(2, Some(1))).unwrap_err().code, "lease-lost");
    }

    #[test]
    fn only_the_holder_releases() {
        let taken = given::<Lease>([take(1, None), take(2, Some(1))]);
        assert_eq!(taken.decide(release(1)), Ok(vec![]));
        assert!(matches!(taken.decide(release(2)).unwrap()[..], [Event::Released(_)]));
        assert_eq!(Lease::Free.decide(release(2)), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn whatever_is_tried_the_lease_passes_only_from_its_holder(
            steps in prop::collection::vec((1u128..5, prop::option::of(1u128..5), any::<bool>()), 0..40),
        ) {
            let mut state = Lease::Free;
            for (claim, from, leave) in steps {
                let before = match &state { Lease::Held { claim_id, .. } => Some(*claim_id), Lease::Free => None };
                let command = if leave { release(claim) } else { take(claim, from) };
                for event in state.decide(command).unwrap_or_default() {
                    match &event {
                        Event::Taken(taken) => prop_assert_eq!(taken.taken_from, before),
                        Event::Released(released) => prop_assert_eq!(Some(released.claim_id), before),
                    }
                    state = state.evolve(&event);
                }
            }
        }
    }
}
