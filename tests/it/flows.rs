//! Stories against the real parts: the service as a process of its own, a TAP server, a DALiuGE, a Prometheus.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

pub mod alerting;
mod alerts_cluster;
mod alerts_story;
mod backtest;
mod bootstrap;
mod channel_secrets;
mod cluster;
mod crash;
mod cut;
mod deliveries;
mod delivery_storm;
mod drain;
mod drill;
mod footprint;
mod objects;
mod operators;
mod overtaken;
mod postgres;
mod receivers;
mod recover;
mod redaction;
mod replay;
mod scrape;
mod secrets;
mod service;
mod slurm;
mod slurm_faults;
mod standby;
mod streams;
mod stuck;
mod survey;
