//! Project configurations: what is wrong with one, and what a good one comes to.

mod discovery;
mod example;
mod graph;
mod manifest;
mod real_discovery;
mod validation;
