//! `nodosum keys`: the gossip keys, without their secrets.

use std::{thread, time::Duration};

use crate::{
    CALL_TIMEOUT,
    admin::{
        client::{call, unexpected},
        protocol::{Command, KeyView, KeysView, Reply},
    },
    args::{Admin, KeyRemove, KeyRotate, Keys, KeysList},
    clock::Deadline,
    exit::{Exit, Failure},
    output::{Column, clean, duration, print, render, wide},
};

/// How often to look whether a new key is confirmed. Members answer within a round trip.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

const COLUMNS: [Column<KeyView>; 5] = [
    Column::text("KEY", "key", |key| key.key.clone()),
    Column::number(
        "GENERATION",
        "generation",
        |key| key.generation.to_string(),
        |key| key.generation.to_string(),
    ),
    Column {
        title: "SEALS",
        key: "seals",
        wide: false,
        right: false,
        text: |key| if key.seals { "yes" } else { "no" }.to_owned(),
        raw: |key| key.seals.to_string(),
    },
    Column::number(
        "CONFIRMED",
        "confirmed",
        |key| format!("{} of {}", key.confirmed, key.members),
        |key| key.confirmed.to_string(),
    ),
    wide(Column::text("MISSING", "missing", |key| {
        key.missing.join(",")
    })),
];

pub(crate) fn run(args: &Keys) -> Result<Exit, Failure> {
    match args {
        Keys::List(args) => list(args),
        Keys::Rotate(args) => rotate(args),
        Keys::Remove(args) => remove(args),
    }
}

fn list(args: &KeysList) -> Result<Exit, Failure> {
    let view = fetch(&args.read.admin)?;
    let name = |key: &KeyView| key.key.clone();
    print(&render(
        args.read.layout(),
        &COLUMNS,
        &view.keys,
        name,
        &view,
    )?)?;
    Ok(Exit::Done)
}

fn fetch(admin: &Admin) -> Result<KeysView, Failure> {
    let Reply::Keys(view) = call(admin, Command::Keys, &[], CALL_TIMEOUT)? else {
        return Err(unexpected());
    };
    Ok(view)
}

/// Makes a key and waits until it is in use and everybody has it.
fn rotate(args: &KeyRotate) -> Result<Exit, Failure> {
    let deadline = Deadline::after(args.timeout);
    let reply = call(&args.admin, Command::RotateKey, &[], CALL_TIMEOUT)?;
    let Reply::Rotated { key } = reply else {
        return Err(unexpected());
    };
    loop {
        let view = fetch(&args.admin)?;
        // Somebody else may have rotated as well, and then the higher key is the one.
        let newest = view.keys.first().ok_or_else(unexpected)?;
        if newest.seals && newest.confirmed == newest.members {
            print(&format!(
                "{} is in use; {} of {} members confirmed it\n",
                clean(&newest.key),
                newest.confirmed,
                newest.members
            ))?;
            return Ok(Exit::Done);
        }
        if deadline.is_over() {
            return Err(unfinished(&key, newest, args.timeout));
        }
        thread::sleep(LOOK_AGAIN.min(deadline.remaining()));
    }
}

fn unfinished(key: &str, newest: &KeyView, waited: Duration) -> Failure {
    let mut message = format!(
        "{} was made and spreads; after {}, {} of {} members confirmed it",
        clean(key),
        duration(waited),
        newest.confirmed,
        newest.members
    );
    if !newest.missing.is_empty() {
        message.push_str(&format!(", not {}", clean(&newest.missing.join(", "))));
    }
    Failure::unmet(message).hint("look again with: nodosum keys list -o wide")
}

fn remove(args: &KeyRemove) -> Result<Exit, Failure> {
    let command = Command::RemoveKey {
        key: args.key.to_string(),
    };
    let Reply::Done = call(&args.admin, command, &[], CALL_TIMEOUT)? else {
        return Err(unexpected());
    };
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Format, Layout};

    fn view() -> KeysView {
        let key = |key: &str, generation, seals, missing: &[&str]| KeyView {
            key: key.to_owned(),
            generation,
            seals,
            confirmed: 3 - missing.len(),
            members: 3,
            missing: missing.iter().map(|&node| node.to_owned()).collect(),
        };
        KeysView {
            schema: 1,
            node: "n1".to_owned(),
            cluster: "default".to_owned(),
            fixed: false,
            members: 3,
            keys: vec![
                key("00000000000000aa", 2, false, &["n3"]),
                key("00000000000000bb", 1, true, &[]),
            ],
        }
    }

    #[test]
    fn the_table_shows_how_far_each_key_has_got_and_who_is_missing() {
        let layout = Layout {
            format: Format::Wide,
            header: true,
        };
        let view = view();
        let text = render(layout, &COLUMNS, &view.keys, |k| k.key.clone(), &view).unwrap();
        assert_eq!(
            text,
            "KEY               GENERATION  SEALS  CONFIRMED  MISSING\n\
             00000000000000aa           2  no        2 of 3  n3\n\
             00000000000000bb           1  yes       3 of 3\n"
        );
    }

    #[test]
    fn a_rotation_that_takes_too_long_names_who_is_missing() {
        let failure = unfinished("aa", &view().keys[0], Duration::from_secs(10));
        assert_eq!(failure.exit, Exit::Unmet);
        assert!(failure.message.contains("2 of 3"), "{failure:?}");
        assert!(failure.message.ends_with("not n3"), "{failure:?}");
    }
}
