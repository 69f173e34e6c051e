//! `nodosum events`.

use crate::{
    CALL_TIMEOUT,
    admin::{
        client::{Client, unexpected},
        protocol::{Command, EventView, Reply},
    },
    args::Events,
    exit::{Exit, Failure},
    output::{Column, Format, Layout, clean, json_line, print, raw, render},
};

const COLUMNS: [Column<EventView>; 9] = [
    Column::text("SEQ", "seq", |event| event.seq.to_string()),
    Column::text("AT", "at", |event| event.at.clone()),
    Column::text("EVENT", "event", |event| event.event.clone()),
    Column::text("NODE", "node", |event| raw(event.node.as_ref())),
    Column::text("REASON", "reason", |event| raw(event.reason.as_ref())),
    Column::text("MISSED", "missed", |event| raw(event.missed)),
    Column::text("UNACKNOWLEDGED", "unacknowledged", |event| {
        raw(event.unacknowledged)
    }),
    Column::text("NAME", "name", |event| {
        raw(event.user.as_ref().map(|user| &user.name))
    }),
    Column::text("PAYLOAD", "payload", |event| {
        raw(event.user.as_ref().map(|user| user.payload.text()))
    }),
];

pub(crate) fn run(args: &Events) -> Result<Exit, Failure> {
    let command = Command::Events {
        follow: args.follow,
    };
    let timeout = (!args.follow).then_some(CALL_TIMEOUT);
    let mut client = Client::ask(&args.read.admin, command, &[], timeout)?;
    let mut layout = args.read.layout();
    loop {
        match client.reply()? {
            Reply::Event(event) if concerns(args, &event) => {
                print(&line(layout, event)?)?;
                layout.header = false;
            }
            Reply::Event(_) => {}
            Reply::End => return Ok(Exit::Done),
            Reply::Members(_)
            | Reply::Conns(_)
            | Reply::Status(_)
            | Reply::Done
            | Reply::Pong { .. }
            | Reply::Delivery(_)
            | Reply::Payload { .. }
            | Reply::Joined { .. }
            | Reply::Explanation(_)
            | Reply::Keys(_)
            | Reply::Rotated { .. }
            | Reply::Left { .. }
            | Reply::Answer(_)
            | Reply::Asked { .. }
            | Reply::Tags(_)
            | Reply::Log(_)
            | Reply::Settings { .. }
            | Reply::Error { .. } => return Err(unexpected()),
        }
    }
}

/// Who asks for the events of some nodes is told of a gap too: they may have been in it.
fn concerns(args: &Events, event: &EventView) -> bool {
    match (&args.name, &event.node) {
        (Some(name), Some(node)) => name.is_match(node),
        (Some(_), None) => event.missed.is_some(),
        (None, _) => true,
    }
}

/// Events come one by one, so that a table cannot wait for its widest cell.
fn line(layout: Layout, event: EventView) -> Result<String, Failure> {
    match layout.format {
        Format::Table | Format::Wide => {
            let header =
                "SEQ   AT                           EVENT           NODE          REASON\n";
            let mut line = format!(
                "{:<5} {:<28} {:<15} {:<13} {}",
                event.seq,
                clean(&event.at),
                clean(&event.event),
                clean(event.node.as_deref().unwrap_or("-")),
                clean(&explanation(&event)),
            );
            line.truncate(line.trim_end().len());
            line.push('\n');
            Ok(if layout.header {
                format!("{header}{line}")
            } else {
                line
            })
        }
        Format::Json | Format::Jsonl => json_line(&event),
        Format::Tsv | Format::Name => {
            render(layout, &COLUMNS, &[event], |event| event.event.clone(), &())
        }
    }
}

fn explanation(event: &EventView) -> String {
    let mut parts: Vec<String> = event.reason.iter().cloned().collect();
    if let Some(user) = &event.user {
        let text = format!("{} {}", user.name, user.payload.text());
        parts.push(text.trim_end().to_owned());
    }
    if let Some(missed) = event.missed {
        parts.push(format!("{missed} events are missing here"));
    }
    if let Some(count) = event.unacknowledged.filter(|count| *count > 0) {
        parts.push(format!("{count} messages were never acknowledged"));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::protocol::PayloadView;
    use nodosum::unversioned::views::UserEventView;

    #[test]
    fn an_event_of_an_application_is_shown_with_its_name_and_payload() {
        let event = EventView {
            schema: 1,
            seq: 3,
            at: "2026-11-22T16:02:44.000000Z".into(),
            event: "user_event".into(),
            node: Some("n2".into()),
            reason: None,
            missed: None,
            unacknowledged: None,
            user: Some(Box::new(UserEventView {
                name: "deploy".into(),
                lamport: 4,
                payload: PayloadView::of(b"v2".to_vec()),
            })),
        };
        assert_eq!(explanation(&event), "deploy v2");
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "schema": 1, "seq": 3, "at": "2026-11-22T16:02:44.000000Z", "event": "user_event",
                "node": "n2", "reason": null, "name": "deploy", "lamport": 4, "payload": "v2",
            })
        );
        assert_eq!(serde_json::from_value::<EventView>(json).unwrap(), event);
        let binary = PayloadView::of(vec![0, 255]);
        assert_eq!(binary.text(), "0x00ff");
    }

    #[test]
    fn a_line_of_the_table_says_what_when_who_and_why() {
        let event = EventView {
            schema: 1,
            seq: 3,
            at: "2026-11-22T16:02:44.000000Z".into(),
            event: "disconnected".into(),
            node: Some("n2".into()),
            reason: Some("idle\n".into()),
            missed: None,
            unacknowledged: Some(2),
            user: None,
        };
        let layout = Layout {
            format: Format::Table,
            header: true,
        };
        assert_eq!(
            line(layout, event).unwrap(),
            "SEQ   AT                           EVENT           NODE          REASON\n\
             3     2026-11-22T16:02:44.000000Z  disconnected    n2            \
             idle\\u{a}; 2 messages were never acknowledged\n"
        );
    }
}
