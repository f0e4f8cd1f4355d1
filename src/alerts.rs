//! **Alerting**: what alerts call for is told to people. [`message`] says what there is to tell, [`channels`] lays it out for a
//! kind of receiver, by [`template`]s if a channel has some, [`deliver`] makes one attempt, [`failing`] disables a channel that nobody
//! answers on, [`evaluate`] judges rules, [`post`] is the process manager that enqueues what alerts call for and tries what is
//! due.
//!
//! Invariants: a message is enqueued under the id of its cause and channel, so that it is enqueued once whoever sees the cause;
//! an attempt is recorded after it was made, so that a process that dies meanwhile makes it again under the same message id.
//! Where secrets are read they stay: no error, answer or event has them.

pub mod backtest;
pub mod channels;
pub mod deliver;
pub mod evaluate;
pub mod explain;
pub mod failing;
pub mod hear;
pub mod lag;
pub mod message;
pub mod payload;
pub mod post;
mod redact;
pub mod silencing;
pub mod template;
