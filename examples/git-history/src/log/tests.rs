use super::*;
use proptest::prelude::*;

fn parse(bytes: &[u8]) -> Result<Vec<Item>, LogError> {
    let mut parser = Parser::default();
    let mut items = Vec::new();
    let mut fields: Vec<&[u8]> = bytes.split(|b| *b == 0).collect();
    // What follows the last NUL is no field unless there is something.
    if fields.last().is_some_and(|f| f.is_empty()) {
        fields.pop();
    }
    for field in fields {
        items.extend(parser.field(field)?);
    }
    parser.finish()?;
    Ok(items)
}

/// Prints items as git does, with the given number of newlines and empty fields between records.
fn print(items: &[Item], newlines: usize, empty_fields: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        match item {
            Item::Commit(c) => {
                out.resize(out.len() + empty_fields, 0);
                for field in [
                    &format!("commit {}", c.id),
                    &c.author_name,
                    &c.author_email,
                    &c.time,
                    &c.subject,
                ] {
                    out.extend_from_slice(field.as_bytes());
                    out.push(0);
                }
                out.resize(out.len() + empty_fields, 0);
            }
            Item::Change(c) => {
                out.resize(out.len() + newlines, b'\n');
                let (zero_mode, zero_blob) = ("000000", "0".repeat(c.blob.len()));
                let old = (zero_mode, zero_blob.as_str());
                let new = (c.mode.as_str(), c.blob.as_str());
                let (status, from, old, new) = match &c.kind {
                    Kind::Added => ("A", None, old, new),
                    Kind::Modified => ("M", None, old, new),
                    Kind::Deleted => ("D", None, new, old),
                    Kind::Renamed { from } => ("R087", Some(from), old, new),
                    Kind::Copied { from } => ("C100", Some(from), old, new),
                };
                out.extend_from_slice(
                    format!(":{} {} {} {} {status}\0", old.0, new.0, old.1, new.1).as_bytes(),
                );
                for path in from.into_iter().chain([&c.path]) {
                    out.extend_from_slice(path);
                    out.push(0);
                }
            }
        }
    }
    out
}

fn id() -> impl Strategy<Value = String> {
    prop_oneof!["[0-9a-f]{40}", "[0-9a-f]{64}"]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(1u8.., 1..40),
        // What could be taken for something else.
        Just(b":100644 100644 a b M".to_vec()),
        Just(b"commit 0000000000000000000000000000000000000000".to_vec()),
        Just(b"\n".to_vec()),
    ]
}

fn item() -> impl Strategy<Value = Item> {
    let text = || "[^\0]{0,20}";
    let commit = (id(), text(), text(), text(), text()).prop_map(
        |(id, author_name, author_email, time, subject)| {
            Item::Commit(Commit { id, author_name, author_email, time, subject })
        },
    );
    let kind = prop_oneof![
        Just(Kind::Added),
        Just(Kind::Modified),
        Just(Kind::Deleted),
        path().prop_map(|from| Kind::Renamed { from }),
        path().prop_map(|from| Kind::Copied { from }),
    ];
    let change = (kind, path(), "[0-7]{6}", id())
        .prop_map(|(kind, path, mode, blob)| Item::Change(Change { kind, path, mode, blob }));
    prop_oneof![commit, change]
}

proptest! {
    #[test]
    fn what_git_prints_is_what_is_read(
        items in prop::collection::vec(item(), 0..12), newlines in 0usize..3, empty in 0usize..3,
    ) {
        prop_assert_eq!(parse(&print(&items, newlines, empty)), Ok(items));
    }

    #[test]
    fn any_bytes_give_items_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn output_that_ends_early_is_no_whole_history(
        items in prop::collection::vec(item(), 1..6), cut in any::<prop::sample::Index>(),
    ) {
        let bytes = print(&items, 1, 1);
        let cut = cut.index(bytes.len());
        // Never anything that was not there: a prefix of the items, or an error.
        if let Ok(read) = parse(&bytes[..cut]) {
            let whole = read.len().saturating_sub(1);
            prop_assert_eq!(&read[..whole], &items[..whole]);
        }
    }
}

#[test]
fn an_unknown_status_is_named() {
    let z = "0".repeat(40);
    let error = parse(format!("\n:100644 100644 {z} {z} U\0x\0").as_bytes()).unwrap_err();
    assert_eq!(error.field, 1);
    assert!(error.to_string().contains("A, C, D, M, R, T"), "{error}");
}
