//! `weir demo`: an outage from beginning to end, on free ports of this machine.
//!
//! The [`shop`] does as the [`mod@script`] says; [`traffic`] goes to it through Weir
//! and without; [`tally`] counts what callers get, [`story`] what happens;
//! [`view`] shows both on a [`screen`], [`mod@summary`] in plain text.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::sync::broadcast;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use weir_agent::{Agent, ControlPlaneAddress};
use weir_control_plane::events::Event;
use weir_control_plane::store::{Changed, Collection};
use weir_control_plane::{Config, ControlPlane};

mod manifests;
mod screen;
mod script;
mod shop;
mod story;
mod summary;
mod tally;
mod traffic;
mod view;
mod words;

use crate::signals::Signals;
use manifests::Manifests;
use screen::Screen;
use script::{Mood, SHORTEST, script};
use shop::{NAMES, Shop};
use story::Story;
use tally::Tally;
use traffic::Traffic;
use view::View;

/// The longest demo.
const LONGEST: Duration = Duration::from_secs(3_600);
/// Between two pictures on a terminal.
const FRAME: Duration = Duration::from_millis(200);
/// Between two lines of figures in plain text.
const PLAIN: Duration = Duration::from_secs(2);
/// The parts of Weir get so long to start and to end.
const WITHIN: Duration = Duration::from_secs(10);

/// See an outage of one service, with Weir and without: no cluster, no set-up.
///
/// Starts three small HTTP services, Weir in front of them, and steady traffic.
/// One service slows down, fails and recovers; you see its breaker go Closed →
/// Open → HalfOpen → Closed, and what callers get. It uses free ports only, and
/// leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0, or 1 if the breaker did not go its way.")]
pub(crate) struct Options {
    /// How long: 20s to 1h. Every 40s there is another outage.
    #[arg(long, value_name = "TIME", default_value = "40s", value_parser = duration)]
    duration: Duration,
    /// A plain log instead of the live view, as when there is no terminal.
    #[arg(long)]
    plain: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = crate::args::duration(text)?;
    if (SHORTEST..=LONGEST).contains(&duration) {
        Ok(duration)
    } else {
        Err("write 20s to 1h".to_owned())
    }
}

pub(crate) async fn execute(options: Options, logs: bool) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch_with_hangup()?;
    let stage = tokio::select! {
        stage = Stage::build() => stage?,
        () = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    // Logs would run through the picture.
    let live = !options.plain && !logs && stdout().is_terminal();
    let mut show = Show::new(&stage, options.duration);
    let ended = show.run(&stage, &mut signals, live).await?;
    let hints = stage.hints();
    stage.take_down(&mut signals).await;
    let mut out = stdout().lock();
    writeln!(
        out,
        "\n{}",
        summary::summary(&show.tally, show.began.elapsed())
    )?;
    let complete = show.story.is_complete();
    if complete {
        writeln!(
            out,
            "The breaker of payments went Closed → Open → HalfOpen → Closed.\n"
        )?;
    } else if ended {
        writeln!(
            out,
            "The breaker of payments did not go Closed → Open → HalfOpen → Closed.\n"
        )?;
    }
    writeln!(out, "{hints}")?;
    Ok(if complete || !ended {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Everything that runs.
struct Stage {
    /// The shop that Weir is in front of.
    shop: Shop,
    /// The same without Weir: the load on one must not weigh on the other.
    bare: Shop,
    manifests: Manifests,
    control_plane: ControlPlane,
    agent: Agent,
    /// Where Weir listens for each service, in the order of [`NAMES`].
    listening: Vec<SocketAddr>,
}

impl Stage {
    async fn build() -> anyhow::Result<Stage> {
        let shop = Shop::open()
            .await
            .context("cannot start the demo's services")?;
        let bare = Shop::open()
            .await
            .context("cannot start the demo's services")?;
        let manifests = Manifests::write(&shop.addresses)?;
        let control_plane =
            ControlPlane::start(Config::new(vec![manifests.path().to_owned()])).await?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let agent = Agent::start(weir_agent::Config {
            node: "demo".to_owned(),
            control_plane: ControlPlaneAddress::new(
                &format!("http://{}", control_plane.grpc_addr()),
                None,
                None,
            )?,
            caller_namespace: None,
            proxy: Some(any),
            admin: Some(any),
            state_dir: None,
            workers: NonZeroUsize::MIN,
            drain_timeout: Duration::from_secs(1),
            handover: None,
            capture: None,
            stale_after: weir_agent::STALE_AFTER,
            kernel: weir_agent::Kernel::default(),
        })
        .await?;
        timeout(WITHIN, agent.synced())
            .await
            .context("the agent got no configuration in time")?;
        let all = agent.listening().await;
        let mut listening = Vec::new();
        for name in NAMES {
            let found = all
                .iter()
                .find(|listening| listening.service == format!("shop/{name}"));
            listening.push(
                found
                    .with_context(|| format!("Weir does not listen for {name}"))?
                    .address,
            );
        }
        Ok(Stage {
            shop,
            bare,
            manifests,
            control_plane,
            agent,
            listening,
        })
    }

    /// What to try while it runs.
    fn meanwhile(&self) -> Vec<String> {
        let mut lines = vec![format!("try: edit {}", self.manifests.policies().display())];
        if let Some(proxy) = self.agent.proxy_addr() {
            lines.push(format!(
                "     curl -i -x http://{proxy} http://payments.shop/"
            ));
        }
        if let Some(admin) = self.control_plane.admin_addr() {
            lines.push(format!(
                "     {} get breakers -w --server http://{admin}",
                program()
            ));
        }
        lines
    }

    /// What to try next.
    fn hints(&self) -> String {
        let weir = program();
        format!(
            "Try next\n  \
             # Keep it running, and edit the policy at the path that it shows.\n  \
             {weir} demo --duration 10m\n  \
             # The same shop with services of your own: examples/shop/README.md\n  \
             {weir} run -f examples/shop\n  \
             {weir} get breakers -w\n  \
             curl -i -x http://127.0.0.1:15081 http://payments.shop/"
        )
    }

    async fn take_down(self, signals: &mut Signals) {
        let down = async {
            self.agent.shutdown().await;
            self.control_plane.shutdown().await;
        };
        tokio::select! {
            _ = timeout(WITHIN, down) => {}
            () = signals.next() => {}
        }
    }
}

/// This command as it was called.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "weir".to_owned())
}

/// What is seen and counted.
struct Show {
    began: Instant,
    duration: Duration,
    tally: Tally,
    story: Story,
    mood: Mood,
    hints: Vec<String>,
    /// Entries of the story that were printed.
    printed: usize,
}

impl Show {
    fn new(stage: &Stage, duration: Duration) -> Show {
        Show {
            began: Instant::now(),
            duration,
            tally: Tally::default(),
            story: Story::begin(jiff::Timestamp::now().as_millisecond()),
            mood: Mood::Well,
            hints: stage.meanwhile(),
            printed: 0,
        }
    }

    /// Runs to the end (true), or until a signal.
    async fn run(
        &mut self,
        stage: &Stage,
        signals: &mut Signals,
        live: bool,
    ) -> anyhow::Result<bool> {
        let mut events = stage.control_plane.subscribe_events();
        let mut policies = stage.control_plane.watch(Collection::ResiliencePolicies);
        for changed in &policies.present {
            self.story.policy(Duration::ZERO, changed);
        }
        let mut traffic = Traffic::start(&stage.listening, &stage.bare.addresses);
        let screen = if live { Some(Screen::open()?) } else { None };
        if screen.is_none() {
            writeln!(stdout(), "{}\n", self.hints.join("\n"))?;
        }
        let mut script = script(self.duration).into_iter().peekable();
        let mut frames = interval(if live { FRAME } else { PLAIN });
        frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let next = script.peek().map_or(self.duration, |(at, _)| *at);
            tokio::select! {
                () = signals.next() => return Ok(false),
                () = sleep_until(self.began + next) => match script.next() {
                    Some((at, mood)) => self.turn(stage, at, mood),
                    None => return Ok(true),
                },
                event = events.recv() => self.hear(stage, event),
                changed = policies.changes.recv() => self.policy(changed),
                Some((stream, news)) = traffic.news.recv() => {
                    self.tally.count(self.second(), stream, news);
                }
                _ = frames.tick() => match &screen {
                    Some(screen) => screen.draw(&self.view().lines(Screen::size()))?,
                    None => writeln!(stdout(), "{}", summary::status(self.began.elapsed(), &self.tally, &self.story))?,
                },
            }
            if screen.is_none() {
                for entry in self.story.since(self.printed) {
                    writeln!(stdout(), "{}", summary::told(entry))?;
                }
                self.printed = self.story.made();
            }
        }
    }

    fn turn(&mut self, stage: &Stage, at: Duration, mood: Mood) {
        stage.shop.set_mood(mood);
        stage.bare.set_mood(mood);
        self.mood = mood;
        self.story.announce(at, mood);
    }

    /// What was missed was told to nobody, and is not made up for.
    fn hear(&mut self, stage: &Stage, event: Result<Event, broadcast::error::RecvError>) {
        if let Ok(mut event) = event {
            let directory = format!("{}/", stage.manifests.path().display());
            event.message = event.message.replace(&directory, "");
            self.story.hear(&event);
        }
    }

    fn policy(&mut self, changed: Result<Changed, broadcast::error::RecvError>) {
        if let Ok(changed) = changed
            && changed.collection == Collection::ResiliencePolicies
        {
            self.story.policy(self.began.elapsed(), &changed);
        }
    }

    /// The number of the present second.
    fn second(&self) -> usize {
        usize::try_from(self.began.elapsed().as_secs()).unwrap_or(usize::MAX)
    }

    fn view(&mut self) -> View<'_> {
        self.tally.reach(self.second());
        View {
            tally: &self.tally,
            story: &self.story,
            mood: self.mood,
            elapsed: self.began.elapsed(),
            duration: self.duration,
            hints: &self.hints,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_is_long_enough_for_a_breaker_to_close_again() {
        assert_eq!(duration("40s"), Ok(Duration::from_secs(40)));
        for wrong in ["19s", "2h"] {
            assert_eq!(duration(wrong), Err("write 20s to 1h".to_owned()));
        }
        assert!(duration("forty").unwrap_err().contains("not a duration"));
    }
}
