//! What a hand-over **writes down**: always about the session that was announced for it.
//!
//! Whoever hands over may be slow. Meanwhile somebody may have settled the session, or have given it up and tried the execution
//! again; the decider refuses what is then said of it, and no step of a hand-over that was given up is taken any more.

use beampipe_domain::execution::{Command, Execution, Receipt};
use uuid::Uuid;

use super::HandedOver;
use crate::handle::{Context, HandleError};
use crate::work::Shop;

pub(super) struct Book<'a> {
    pub shop: &'a Shop,
    pub context: &'a Context,
    pub execution: String,
    pub session_id: Uuid,
}

impl Book<'_> {
    /// Whether the session is no longer the one that the execution has announced.
    pub async fn is_overtaken(&self) -> Result<bool, HandleError> {
        let state = self.shop.handle.load::<Execution>(&self.execution).await?.state;
        Ok(state.submission().is_none_or(|submission| submission.session_id != self.session_id))
    }

    pub async fn cancel_requested(&self) -> Result<bool, HandleError> {
        let state = self.shop.handle.load::<Execution>(&self.execution).await?.state;
        Ok(state.facts().is_some_and(|facts| facts.cancel_requested))
    }

    pub async fn receipt(
        &self,
        receipt: Receipt,
        settled_by: Option<String>,
    ) -> Result<HandedOver, HandleError> {
        let job = if let Receipt::Slurm { slurm_job_id, .. } = &receipt {
            Some(slurm_job_id.clone())
        } else {
            None
        };
        let command = Command::RecordReceipt { session_id: self.session_id, receipt, settled_by };
        let come = self.write(command, HandedOver::Recorded).await?;
        if let HandedOver::Overtaken = come {
            tracing::warn!(
                execution = self.execution, session = %self.session_id, job,
                "the backend has a session that was given up while it was handed over; it is recorded nowhere else",
            );
        }
        Ok(come)
    }

    pub async fn refuse(
        &self,
        class: &str,
        error: String,
        evidence: Option<String>,
    ) -> Result<HandedOver, HandleError> {
        let (session_id, failure_class) = (self.session_id, class.to_owned());
        let command = Command::RecordRefusal { session_id, failure_class, error, evidence };
        self.write(command, HandedOver::Refused).await
    }

    pub async fn cancelled(&self) -> Result<HandedOver, HandleError> {
        let command = Command::ConfirmCancel { session_id: self.session_id, terminal: None };
        self.write(command, HandedOver::Cancelled).await
    }

    /// What is not known: written down if an answer was lost.
    pub async fn open(&self, step: &str, reason: String, lost: bool) -> Result<HandedOver, HandleError> {
        let come = HandedOver::Open { reason: reason.clone() };
        if !lost {
            return Ok(come);
        }
        let command = Command::LoseReceipt { session_id: self.session_id, step: step.to_owned(), reason };
        self.write(command, come).await
    }

    async fn write(&self, command: Command, come: HandedOver) -> Result<HandedOver, HandleError> {
        match self.shop.handle.handle::<Execution>(&self.execution, self.context, command).await {
            Ok(_) => Ok(come),
            Err(HandleError::Rejected(no)) if overtakes(no.code) => Ok(HandedOver::Overtaken),
            Err(error) => Err(error),
        }
    }
}

/// Whether the decider said by `code` that something happened to the execution meanwhile: it has ended, another session was
/// announced, or the next attempt has announced none yet.
pub fn overtakes(code: &str) -> bool {
    matches!(code, "execution-ended" | "not-this-session" | "not-now")
}
