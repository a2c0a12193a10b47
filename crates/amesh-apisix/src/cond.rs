//! Conditions on a request, in the language of `vars` (lua-resty-expr).

use serde_json::{json, Value};

/// A condition.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cond {
    /// Always.
    True,
    /// Never.
    False,
    /// A variable is compared. One that is not set is equal to nothing and matches nothing.
    Test {
        /// The variable.
        var: String,
        /// The result is turned round.
        negated: bool,
        /// `==`, `~~`, `in`, `>`, `<`.
        op: &'static str,
        /// What it is compared with.
        value: Value,
    },
    /// All hold.
    All(Vec<Cond>),
    /// One holds.
    Any(Vec<Cond>),
}

impl Cond {
    /// A variable is this text.
    pub fn is(var: &str, text: &str) -> Cond {
        Cond::Test { var: var.to_owned(), negated: false, op: "==", value: json!(text) }
    }

    /// A regular expression of PCRE is found in a variable.
    pub fn finds(var: &str, pattern: &str) -> Cond {
        Cond::Test { var: var.to_owned(), negated: false, op: "~~", value: json!(pattern) }
    }

    /// A variable is one of these texts.
    pub fn one_of(var: &str, texts: &[String]) -> Cond {
        match texts {
            [] => Cond::False,
            [one] => Cond::is(var, one),
            _ => Cond::Test { var: var.to_owned(), negated: false, op: "in", value: json!(texts) },
        }
    }

    /// A variable is a number above this one, or below it.
    pub fn number(var: &str, op: &'static str, than: i64) -> Cond {
        Cond::Test { var: var.to_owned(), negated: false, op, value: json!(than) }
    }

    /// A variable is set, if only to the empty text.
    pub fn set(var: &str) -> Cond {
        Cond::finds(var, "^")
    }

    /// The contrary.
    pub fn not(self) -> Cond {
        match self {
            Cond::True => Cond::False,
            Cond::False => Cond::True,
            Cond::Test { var, negated, op, value } => Cond::Test { var, negated: !negated, op, value },
            Cond::All(all) => Cond::any(all.into_iter().map(Cond::not)),
            Cond::Any(any) => Cond::all(any.into_iter().map(Cond::not)),
        }
    }

    /// The contrary, if asked for.
    pub fn not_if(self, turned: bool) -> Cond {
        if turned {
            self.not()
        } else {
            self
        }
    }

    /// All of these.
    pub fn all(conds: impl IntoIterator<Item = Cond>) -> Cond {
        let mut out = Vec::new();
        for cond in conds {
            match cond {
                Cond::True => {}
                Cond::False => return Cond::False,
                Cond::All(inner) => out.extend(inner),
                cond => out.push(cond),
            }
        }
        match (out.pop(), out.is_empty()) {
            (None, _) => Cond::True,
            (Some(only), true) => only,
            (Some(last), false) => {
                out.push(last);
                Cond::All(out)
            }
        }
    }

    /// One of these.
    pub fn any(conds: impl IntoIterator<Item = Cond>) -> Cond {
        let mut out = Vec::new();
        for cond in conds {
            match cond {
                Cond::False => {}
                Cond::True => return Cond::True,
                Cond::Any(inner) => out.extend(inner),
                cond => out.push(cond),
            }
        }
        match (out.pop(), out.is_empty()) {
            (None, _) => Cond::False,
            (Some(only), true) => only,
            (Some(last), false) => {
                out.push(last);
                Cond::Any(out)
            }
        }
    }

    /// The condition as `vars`; `None`: it always holds. One that never holds has no such form, and no route needs it.
    pub fn vars(&self) -> Option<Value> {
        match self {
            Cond::True => None,
            Cond::All(all) => Some(Value::Array(all.iter().map(Cond::clause).collect())),
            other => Some(json!([other.clause()])),
        }
    }

    fn clause(&self) -> Value {
        match self {
            Cond::True => json!(["uri", "~~", "^"]),
            Cond::False => json!(["uri", "!", "~~", "^"]),
            Cond::Test { var, negated: false, op, value } => json!([var, op, value]),
            Cond::Test { var, negated: true, op, value } => json!([var, "!", op, value]),
            Cond::All(all) => logic("AND", all),
            Cond::Any(any) => logic("OR", any),
        }
    }
}

fn logic(op: &str, conds: &[Cond]) -> Value {
    Value::Array(std::iter::once(json!(op)).chain(conds.iter().map(Cond::clause)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_alone_stands_in_brackets() {
        assert_eq!(Cond::is("a", "b").vars().unwrap(), json!([["a", "==", "b"]]));
        assert_eq!(Cond::is("a", "b").not().vars().unwrap(), json!([["a", "!", "==", "b"]]));
        assert_eq!(Cond::True.vars(), None);
    }

    #[test]
    fn what_is_joined_is_as_short_as_can_be() {
        let (a, b) = (Cond::set("a"), Cond::set("b"));
        assert_eq!(Cond::any([a.clone(), Cond::False]), a, "OR of one is too short a rule for lua-resty-expr");
        assert_eq!(Cond::all([a.clone(), Cond::False]), Cond::False);
        let either = Cond::any([a.clone(), b.clone()]);
        assert_eq!(either.vars().unwrap(), json!([["OR", ["a", "~~", "^"], ["b", "~~", "^"]]]));
        assert_eq!(either.not(), Cond::all([a.not(), b.not()]));
    }
}
