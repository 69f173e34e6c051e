//! Which path answers what.

use std::{fmt::Write as _, sync::Arc};

use super::{
    head::Head,
    page::{self, Page},
    server::Response,
    views::{EventsView, QuicView},
    watch::Watch,
};
use crate::{
    metrics,
    snapshot::Stage,
    stats::MemberStatus,
    view::View,
    views::{EventView, MembersView, StatusView},
};

const JSON: &str = "application/json";

/// What every answer is made from.
pub(crate) struct Routes {
    view: Arc<View>,
    watch: Arc<Watch>,
    policy: String,
}

/// One thing that is checked.
struct Check {
    name: &'static str,
    outcome: Result<(), String>,
}

impl Routes {
    pub(crate) fn new(view: Arc<View>, watch: Arc<Watch>) -> Self {
        Self {
            view,
            watch,
            policy: page::policy(),
        }
    }

    pub(crate) fn answer(&self, head: &Head) -> Response {
        match head.path.as_str() {
            "/" => {
                let mut response = Response::text(302, "see /debug/quic\n");
                response.headers.push_str("Location: /debug/quic\r\n");
                response
            }
            "/debug/quic" | "/debug/quic/" => self.quic(head),
            "/debug/members" => json(&MembersView::of(
                &self.view.node,
                &self.view.cluster,
                self.view.members(),
            )),
            "/debug/status" => json(&StatusView::from(self.view.status())),
            "/debug/events" => json(&self.events()),
            "/metrics" => self.metrics(head),
            "/livez" => health(head, &[self.reactor()]),
            "/readyz" => health(head, &[self.reactor(), self.joined(), self.not_leaving()]),
            "/healthz" => health(
                head,
                &[
                    self.reactor(),
                    self.joined(),
                    self.not_leaving(),
                    self.connected(),
                ],
            ),
            _ => Response::text(
                404,
                "not here; try /debug/quic, /debug/members, /debug/events, /debug/status, /metrics, \
                 /livez, /readyz, /healthz\n",
            ),
        }
    }

    fn quic(&self, head: &Head) -> Response {
        let wants_json = match head.value("format") {
            Some(format) => format == "json",
            None => prefers_json(&head.accept),
        };
        if wants_json {
            return json(&QuicView::of(&self.view));
        }
        let page = self.watch.look(|memory| Page::of(&self.view, memory));
        if head.asks("part") {
            return Response::new(200, "text/html; charset=utf-8", page.part());
        }
        let mut response = Response::new(200, "text/html; charset=utf-8", page.whole());
        let _ = write!(
            response.headers,
            "Content-Security-Policy: {}\r\nVary: Accept\r\n",
            self.policy
        );
        response
    }

    fn events(&self) -> EventsView {
        let events = |memory: &super::watch::Memory| {
            let events = memory.events.iter().cloned().map(EventView::from);
            events.collect()
        };
        EventsView {
            schema: 1,
            node: self.view.node.to_string(),
            events: self.watch.glance(events),
        }
    }

    fn metrics(&self, head: &Head) -> Response {
        // What Prometheus before 2.5 and `promtool check metrics` read. Everybody else gets OpenMetrics.
        let wants_plain = head.accept.contains("text/plain")
            && !head.accept.contains("openmetrics")
            && !head.accept.contains("*/*");
        let Ok(text) = metrics::encode(&self.view) else {
            return Response::text(500, "the metrics could not be written\n");
        };
        if wants_plain {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            return Response::new(200, kind, metrics::plain(&text));
        }
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        Response::new(200, kind, text)
    }

    fn reactor(&self) -> Check {
        let outcome = match self.view.snapshot.stage() {
            Stage::Failed(why) => Err(why),
            Stage::Stopped => Err("shut down".to_owned()),
            Stage::Joining(_) | Stage::Started | Stage::Leaving => Ok(()),
        };
        Check {
            name: "reactor",
            outcome,
        }
    }

    fn joined(&self) -> Check {
        let outcome = match self.view.snapshot.stage() {
            Stage::Joining(seeds) if seeds.is_empty() => {
                Err("the first join round is under way".to_owned())
            }
            Stage::Joining(seeds) => Err(seeds.join("; ")),
            Stage::Started | Stage::Leaving | Stage::Failed(_) | Stage::Stopped => Ok(()),
        };
        Check {
            name: "joined",
            outcome,
        }
    }

    fn not_leaving(&self) -> Check {
        let outcome = match self.view.snapshot.stage() {
            Stage::Leaving | Stage::Stopped => Err("leaving".to_owned()),
            Stage::Joining(_) | Stage::Started | Stage::Failed(_) => Ok(()),
        };
        Check {
            name: "member",
            outcome,
        }
    }

    /// A node that is alone among others is not well; one that is alone in the world is.
    fn connected(&self) -> Check {
        let members = self.view.members();
        let others = members
            .iter()
            .filter(|m| m.status == MemberStatus::Alive && !m.is_self);
        let (connected, alone): (Vec<_>, Vec<_>) = others.partition(|member| member.connected);
        let outcome = if connected.is_empty() && !alone.is_empty() {
            Err(format!("connected to none of {} members", alone.len()))
        } else {
            Ok(())
        };
        Check {
            name: "quic",
            outcome,
        }
    }
}

/// Whether a client would rather have JSON than a page. Browsers name HTML first.
fn prefers_json(accept: &str) -> bool {
    let at = |kind| accept.find(kind);
    match (at("application/json"), at("text/html")) {
        (Some(json), Some(html)) => json < html,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

fn json(object: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(object) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            Response::new(200, JSON, bytes)
        }
        Err(error) => Response::text(500, format!("{error}\n")),
    }
}

fn health(head: &Head, checks: &[Check]) -> Response {
    let failed = checks.iter().filter(|check| check.outcome.is_err()).count();
    let status = if failed == 0 { 200 } else { 503 };
    let mut body = String::new();
    if head.asks("verbose") || failed > 0 {
        for Check { name, outcome } in checks {
            let _ = match outcome {
                Ok(()) => writeln!(body, "[+]{name} ok"),
                // Reasons hold words of others: one line stays one line.
                Err(why) => writeln!(body, "[-]{name} {}", why.escape_debug()),
            };
        }
    } else {
        body.push_str("ok\n");
    }
    Response::text(status, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_gets_the_page_and_a_script_what_it_asks_for() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        assert!(!prefers_json(browser));
        assert!(!prefers_json("*/*") && !prefers_json(""));
        assert!(prefers_json("application/json"));
        assert!(prefers_json("application/json, text/html;q=0.5"));
    }
}
