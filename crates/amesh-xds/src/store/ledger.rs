//! Which fields of which types are not acted on, counted over all resources.

use super::status::NoteStatus;
use super::Type;
use crate::translate::{Note, Notes};
use std::collections::HashMap;

/// The notes of one resource: row of the ledger, and how often.
pub(super) type NoteCounts = Vec<(u32, u32)>;

/// Resources of a kind tend to have the same notes, so each stands here once.
#[derive(Default)]
pub(super) struct Ledger {
    ids: HashMap<(Type, Note), u32>,
    rows: Vec<Row>,
}

struct Row {
    kind: Type,
    note: Note,
    resources: usize,
    places: u64,
    example: String,
}

impl Ledger {
    pub(super) fn add(&mut self, kind: Type, name: &str, notes: Notes) -> NoteCounts {
        let mut out = NoteCounts::new();
        for (note, count) in notes.into_counts() {
            let rows = &mut self.rows;
            let id = *self.ids.entry((kind, note)).or_insert_with_key(|(_, note)| {
                rows.push(Row { kind, note: note.clone(), resources: 0, places: 0, example: String::new() });
                // A row for each field of Envoy's API at most.
                (rows.len() - 1) as u32
            });
            let row = &mut self.rows[id as usize];
            if row.resources == 0 {
                name.clone_into(&mut row.example);
            }
            row.resources += 1;
            row.places += u64::from(count);
            out.push((id, count));
        }
        out
    }

    pub(super) fn remove(&mut self, notes: &NoteCounts) {
        for (id, count) in notes {
            let row = &mut self.rows[*id as usize];
            row.resources -= 1;
            row.places -= u64::from(*count);
        }
    }

    pub(super) fn notes(&self, notes: &NoteCounts) -> Vec<(Note, u32)> {
        notes.iter().map(|(id, count)| (self.rows[*id as usize].note.clone(), *count)).collect()
    }

    /// What holds now, what is refused first.
    pub(super) fn status(&self) -> Vec<NoteStatus> {
        let held = self.rows.iter().filter(|r| r.resources > 0);
        let mut out: Vec<_> = held
            .map(|r| NoteStatus {
                kind: r.note.kind,
                resource: r.kind.name(),
                field: r.note.field.clone(),
                why: r.note.why.clone().into_owned(),
                resources: r.resources,
                places: r.places,
                example: r.example.clone(),
            })
            .collect();
        out.sort_by(|a, b| (b.kind, a.resource, &a.field, &a.why).cmp(&(a.kind, b.resource, &b.field, &b.why)));
        out
    }
}
