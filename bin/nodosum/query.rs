//! `nodosum query`: asking every node, or some, and printing what they answer.

use serde::Serialize;

use crate::{
    admin::{
        client::{Client, unexpected},
        protocol::{AnswerView, Command, FailedView, Reply},
    },
    args::{Query, repeated_tag},
    exit::{Exit, Failure},
    messages::payload,
    output::{Column, print, render},
};

/// What one node said, or that it said nothing.
#[derive(Debug, PartialEq, Serialize)]
struct Outcome {
    node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The object of `query -o json`.
#[derive(Debug, Serialize)]
struct QueryView<'a> {
    schema: u32,
    answers: &'a [AnswerView],
    refused: &'a [FailedView],
    missing: &'a [String],
}

const COLUMNS: [Column<Outcome>; 3] = [
    Column::text("NODE", "node", |outcome| outcome.node.clone()),
    Column::text("OUTCOME", "error", |outcome| {
        outcome.error.clone().unwrap_or_else(|| "ok".to_owned())
    }),
    Column::text("ANSWER", "payload", |outcome| {
        match (&outcome.payload, &outcome.payload_hex) {
            (Some(text), _) => text.clone(),
            (None, Some(digits)) => format!("0x{digits}"),
            (None, None) => String::new(),
        }
    }),
];

pub(crate) fn run(args: &Query) -> Result<Exit, Failure> {
    if let Some(key) = repeated_tag(&args.tags) {
        return Err(Failure::usage(format!("tag {key:?} is given twice")));
    }
    let payload = payload(&args.payload)?;
    let command = Command::Query {
        name: args.name.clone(),
        nodes: args.nodes.iter().map(ToString::to_string).collect(),
        tags: args.tags.iter().cloned().collect(),
        timeout_seconds: args.timeout.as_secs_f64(),
        payload_bytes: payload.len() as u64,
    };
    let mut client = Client::ask(&args.read.admin, command, &payload, Some(args.timeout))?;
    let mut answers = Vec::new();
    let (refused, missing) = loop {
        match client.reply()? {
            Reply::Answer(answer) => answers.push(answer),
            Reply::Asked { refused, missing } => break (refused, missing),
            Reply::Members(_)
            | Reply::Conns(_)
            | Reply::Status(_)
            | Reply::Event(_)
            | Reply::End
            | Reply::Done
            | Reply::Pong { .. }
            | Reply::Delivery(_)
            | Reply::Payload { .. }
            | Reply::Joined { .. }
            | Reply::Left { .. }
            | Reply::Tags(_)
            | Reply::Log(_)
            | Reply::Settings { .. }
            | Reply::Keys(_)
            | Reply::Rotated { .. }
            | Reply::Explanation(_)
            | Reply::Error { .. } => return Err(unexpected()),
        }
    };
    answers.sort_by(|a, b| a.node.cmp(&b.node));
    let view = QueryView {
        schema: 1,
        answers: &answers,
        refused: &refused,
        missing: &missing,
    };
    let rows = outcomes(&view);
    let name = |outcome: &Outcome| outcome.node.clone();
    print(&render(args.read.layout(), &COLUMNS, &rows, name, &view)?)?;
    Ok(match (answers.is_empty(), missing.is_empty()) {
        (_, false) => Exit::Failed,
        (true, true) => Exit::Unmet,
        (false, true) => Exit::Done,
    })
}

fn outcomes(view: &QueryView<'_>) -> Vec<Outcome> {
    let nothing = |node: &str, error: &str| Outcome {
        node: node.to_owned(),
        payload: None,
        payload_hex: None,
        error: Some(error.to_owned()),
    };
    let answered = view.answers.iter().map(|answer| Outcome {
        node: answer.node.clone(),
        payload: answer.answer.payload.clone(),
        payload_hex: answer.answer.payload_hex.clone(),
        error: None,
    });
    let refused = view
        .refused
        .iter()
        .map(|refused| nothing(&refused.node, &refused.error));
    let missing = view
        .missing
        .iter()
        .map(|node| nothing(node, "nothing in time"));
    let mut all: Vec<_> = answered.chain(refused).chain(missing).collect();
    all.sort_by(|a, b| a.node.cmp(&b.node));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::protocol::PayloadView;

    #[test]
    fn everybody_asked_has_a_row_whatever_came_of_it() {
        let view = QueryView {
            schema: 1,
            answers: &[AnswerView {
                node: "n2".into(),
                answer: PayloadView::of(b"yes".to_vec()),
            }],
            refused: &[FailedView {
                node: "n1".into(),
                error: "no handler".into(),
            }],
            missing: &["n3".into()],
        };
        let rows: Vec<_> = outcomes(&view)
            .into_iter()
            .map(|row| (row.node, row.payload.or(row.error).unwrap()))
            .collect();
        let expected = [
            ("n1", "no handler"),
            ("n2", "yes"),
            ("n3", "nothing in time"),
        ]
        .map(|(node, text)| (node.to_owned(), text.to_owned()));
        assert_eq!(rows, expected);
    }
}
