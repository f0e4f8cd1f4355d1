//! `timeline project`: every source of a project, what it is doing and how far it is, while it happens.
//!
//! On a terminal a row a source that is drawn again in place; otherwise a line a change. It is folded from the project's
//! events by [`Board`]; a break of the connection changes nothing but the moment.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use console::{pad_str, truncate_str};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::cli::board::{Board, Row, Stage};
use crate::cli::client::path;
use crate::cli::event::{Event, Tone, duration};
use crate::cli::out::{Out, remark, time};
use crate::cli::tail::{Next, Tail};
use crate::cli::{Context, Outcome};

#[derive(Debug, Args)]
pub struct Project {
    module: String,
    /// Go on as it happens.
    #[arg(long)]
    follow: bool,
    /// End when so many sources have nothing ahead of them any more.
    #[arg(long, value_name = "N", requires = "follow")]
    until_settled: Option<usize>,
    /// Give up after so many seconds, with exit status 1.
    #[arg(long, value_name = "SECONDS", requires = "follow")]
    timeout: Option<u64>,
}

/// Where changes are shown.
enum Screen {
    /// A row a source, drawn in place.
    Rows { all: MultiProgress, bars: BTreeMap<String, ProgressBar>, head: ProgressBar },
    /// A line a change.
    Lines,
    /// Nothing until the end.
    Silent,
}

impl Project {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let client = context.client()?;
        let tail = Tail::new(client, path(["projects", &self.module, "events"]), vec![], None);
        let mut board = Board::default();
        let mut screen = self.screen(context);
        let watching = self.watch(tail, &mut board, &mut screen, context);
        let in_time = match self.timeout {
            None => {
                watching.await?;
                true
            }
            Some(seconds) => match tokio::time::timeout(Duration::from_secs(seconds), watching).await {
                Ok(watched) => {
                    watched?;
                    true
                }
                Err(_) => false,
            },
        };
        screen.clear();
        self.conclude(context, &board)?;
        if !in_time {
            let open: Vec<&str> =
                board.rows().filter(|row| !row.settled()).map(|row| row.source.as_str()).collect();
            let wanted = self.until_settled.unwrap_or_default();
            remark(format!(
                "error: after {} s {} of {wanted} sources are settled; still going: {}",
                self.timeout.unwrap_or_default(),
                board.settled(),
                if open.is_empty() { "none that is known".to_owned() } else { open.join(", ") }
            ));
            return Ok(Outcome::No);
        }
        Ok(Outcome::Done)
    }

    fn screen(&self, context: &Context) -> Screen {
        if !self.follow || context.out.json() {
            return Screen::Silent;
        }
        if !(context.out.terminal && std::io::stderr().is_terminal()) {
            return Screen::Lines;
        }
        let all = MultiProgress::new();
        let head = all.add(ProgressBar::new(0).with_style(style("{msg}")));
        Screen::Rows { all, bars: BTreeMap::new(), head }
    }

    /// Takes events until it is over: caught up, or enough sources settled.
    async fn watch(
        &self,
        mut tail: Tail,
        board: &mut Board,
        screen: &mut Screen,
        context: &Context,
    ) -> anyhow::Result<()> {
        loop {
            let next = tokio::select! {
                next = tail.next() => next?,
                _ = tokio::signal::ctrl_c() => return Ok(()),
            };
            match next {
                Next::Event(event) => {
                    let changed = board.take(&event);
                    screen.show(&context.out, &self.module, board, &changed, &event)?;
                }
                Next::CaughtUp if !self.follow => return Ok(()),
                Next::CaughtUp | Next::Broken(_) => {}
                Next::Ended => return Ok(()),
            }
            if self.until_settled.is_some_and(|wanted| board.settled() >= wanted) {
                return Ok(());
            }
        }
    }

    fn conclude(&self, context: &Context, board: &Board) -> std::io::Result<()> {
        if context.out.json() {
            return context.out.value(&Value::Array(board.rows().map(row_json).collect()));
        }
        let rows: Vec<Vec<String>> = board
            .rows()
            .map(|row| {
                let execution = row.execution.map_or_else(|| "-".to_owned(), |id| id.to_string());
                let took = duration(row.changed_at - row.began_at);
                let progress = format!("{}/{}", row.stage.step(), Stage::LAST);
                vec![row.source.clone(), row.state.clone(), progress, took, execution, row.detail.clone()]
            })
            .collect();
        context.out.table(&["SOURCE", "STATE", "STEP", "TOOK", "EXECUTION", "DETAIL"], rows)?;
        context.out.line(format!("\n{}", tally(&self.module, board)))
    }
}

impl Screen {
    fn show(
        &mut self,
        out: &Out,
        module: &str,
        board: &Board,
        changed: &[String],
        event: &Event,
    ) -> std::io::Result<()> {
        match self {
            Self::Silent => Ok(()),
            Self::Lines => changed.iter().filter_map(|source| board.row(source)).try_for_each(|row| {
                let step = format!("{:>2}/{}", row.stage.step(), Stage::LAST);
                let line = format!(
                    "{}  {:<24}  {step}  {:<22}  {}",
                    time(event.occurred_at),
                    row.source,
                    row.state,
                    row.detail
                );
                out.line(line.trim_end())
            }),
            Self::Rows { all, bars, head } => {
                // What does not fit into the window makes room by leaving out what is settled; the tally has it.
                let full = bars.len() + 4 > usize::from(console::Term::stderr().size().0);
                bars.retain(|source, bar| {
                    let stays = board.row(source).is_some_and(|row| !(full && row.settled()));
                    if !stays {
                        all.remove(bar);
                    }
                    stays
                });
                for row in changed.iter().filter_map(|source| board.row(source)) {
                    if !(bars.contains_key(&row.source) || full && row.settled()) {
                        // Rows are in the order of their names, below the head.
                        let place = bars.range(..row.source.clone()).count() + 1;
                        let bar = all.insert(place, ProgressBar::new(Stage::LAST));
                        bars.insert(row.source.clone(), bar);
                    }
                    if let Some(bar) = bars.get(&row.source) {
                        bar.set_style(row_style(row.tone));
                        bar.set_prefix(
                            pad_str(&row.source, 24, console::Alignment::Left, Some("…")).into_owned(),
                        );
                        bar.set_position(row.stage.step());
                        let detail = truncate_str(&row.detail, 60, "…");
                        bar.set_message(format!("{:<22} {detail}", row.state));
                    }
                }
                head.set_message(tally(module, board));
                Ok(())
            }
        }
    }

    fn clear(&mut self) {
        if let Self::Rows { all, .. } = self {
            // The table that follows says the same for good.
            let _ = all.clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn row_style(tone: Tone) -> ProgressStyle {
    let color = match tone {
        Tone::Good => "green",
        Tone::Bad => "red",
        Tone::Doubtful => "yellow",
        Tone::Going => "cyan",
        Tone::Quiet => "white",
    };
    style(&format!("{{prefix}} {{bar:24.{color}}} {{msg}}")).progress_chars("█▉▊▋▌▍▎▏ ")
}

/// How many sources are settled, and how many are in which state.
fn tally(module: &str, board: &Board) -> String {
    let states: Vec<String> = board.counts().into_iter().map(|(state, n)| format!("{n} {state}")).collect();
    let settled = format!("{} of {} sources settled", board.settled(), board.rows().count());
    if states.is_empty() {
        format!("{module}: no sources")
    } else {
        format!("{module}: {settled} · {}", states.join(" · "))
    }
}

fn row_json(row: &Row) -> Value {
    json!({
        "source_identifier": row.source, "state": row.state, "settled": row.settled(), "step": row.stage.step(),
        "steps": Stage::LAST, "execution_id": row.execution, "detail": row.detail, "began_at": row.began_at,
        "changed_at": row.changed_at,
    })
}
