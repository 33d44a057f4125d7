//! The console in a real browser: each of its pages as a person uses it.

mod attacks;
mod axe;
mod drills;
mod files;
mod journey;
mod live;
mod live_restores;
mod pictures;
mod places;
mod setup;
mod without;

use super::client::{Console, LIMIT, start};
use crate::support::browser::{Browser, Look};
use crate::support::{Env, wait_until};

/// Records each value that the progress bar of the page shows.
pub const WATCH: &str = "window.seen = [];
    new MutationObserver(() => {
        const bar = document.querySelector('#live-job progress');
        if (bar && window.seen.at(-1) !== bar.value) window.seen.push(bar.value);
    }).observe(document.querySelector('main'), { childList: true, subtree: true });";

/// Returns the values that [`WATCH`] has recorded.
#[track_caller]
pub fn seen(browser: &Browser) -> Vec<f64> {
    let seen = browser.script("return window.seen;");
    seen.as_array().expect("the page was not loaded again").iter().filter_map(serde_json::Value::as_f64).collect()
}

/// A console and a browser that is logged in to it.
pub struct Desk {
    pub console: Console,
    pub browser: Browser,
}

/// Starts a console and opens its link in a browser.
pub fn desk(env: &Env, look: Look, args: &[&str]) -> Desk {
    desk_of(start(env, args), env, look)
}

/// Opens the link of a console that has been started.
pub fn desk_of(console: Console, env: &Env, look: Look) -> Desk {
    let browser = Browser::start(env, look);
    let desk = Desk { console, browser };
    desk.browser.open(&desk.url(&format!("/login?token={}", desk.console.token)));
    assert_eq!(desk.browser.url(), desk.url("/"));
    desk
}

impl Desk {
    /// The address of a page.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.console.host())
    }

    /// Opens a page.
    #[track_caller]
    pub fn open(&self, path: &str) {
        self.browser.open(&self.url(path));
    }

    /// Waits on the page of a job until it shows this state, and returns the job's id.
    #[track_caller]
    pub fn wait_for_job(&self, state: &str) -> String {
        self.wait_for_job_in("Exit code", state)
    }

    /// Like `wait_for_job`, in another language, with its words for the exit code.
    #[track_caller]
    pub fn wait_for_job_in(&self, exit_code: &str, state: &str) -> String {
        let job = || self.browser.url().split_once("/jobs/").map(|(_, job)| job.to_owned());
        wait_until("a job is started", LIMIT, || job().is_some());
        self.browser.wait_for(exit_code);
        assert_eq!(self.browser.one("#live-job [role=status]").text(), state, "{}", self.browser.text());
        job().unwrap()
    }

    /// Ends the browser, which must not have contacted other hosts, and the console.
    #[track_caller]
    pub fn end(self) {
        let origin = self.url("/");
        self.browser.end(&origin);
        self.console.running.interrupt();
        self.console.running.wait().assert_ok();
    }
}
