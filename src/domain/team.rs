//! Which teams a caller may use.
//!
//! Architecture Invariant: a [`Team`] of a request is made by [`TeamScope`] alone, which checks that
//! its caller may use it. Keys, pages and sweeps hold a `Team`, so that a forgotten check
//! does not compile. What a row names was checked when it was written.

use std::{collections::HashSet, ops::Deref};

use super::{Id, Invalid};

/// A team that the caller of a request may use, or that a row names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Team(String);

impl Team {
    /// The team that a row names. Not for requests: `tests/layering.rs` keeps it out of
    /// `src/grpc`.
    #[must_use]
    pub fn stored(team: impl Into<String>) -> Self {
        Self(team.into())
    }

    /// The team as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The team as text, owned.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }
}

impl Deref for Team {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// One team, or all: what a list, a count or a sweep covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TeamFilter(Option<Team>);

impl TeamFilter {
    /// What the server itself covers. Not for requests, as [`Team::stored`].
    #[must_use]
    pub fn stored(team: Option<Team>) -> Self {
        Self(team)
    }

    /// The only team; none where it is all teams.
    #[must_use]
    pub fn team(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Whether a row of `team` is covered.
    #[must_use]
    pub fn covers(&self, team: &str) -> bool {
        self.team().is_none_or(|only| only == team)
    }
}

/// The teams that a caller may use. Teams are compared byte by byte: names that look alike
/// are different teams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TeamScope {
    /// Each.
    All,
    /// Those in the set.
    Only(HashSet<String>),
}

impl TeamScope {
    /// The required team in `field`.
    ///
    /// # Errors
    /// [`Invalid`] on `field`: the id is empty or breaks a rule, or the caller may not use the
    /// team ([`Fault::TeamDenied`](super::Fault::TeamDenied)).
    pub fn team(&self, field: &'static str, given: String) -> Result<Team, Invalid> {
        self.team_of(field, Id::parse(field, given)?)
    }

    /// The same, of an id that was checked.
    ///
    /// # Errors
    /// [`Invalid`] on `field`: the caller may not use the team.
    pub fn team_of(&self, field: &'static str, id: Id) -> Result<Team, Invalid> {
        if self.contains(id.as_str()) {
            Ok(Team(id.into_string()))
        } else {
            Err(Invalid::denied(
                field,
                "names a team that the caller may not use",
                id.into_string(),
            ))
        }
    }

    /// The team in `field`, where empty means all teams.
    ///
    /// # Errors
    /// As [`TeamScope::team`]; all teams are denied to a caller that may not use each.
    pub fn filter(&self, field: &'static str, given: String) -> Result<TeamFilter, Invalid> {
        match Id::optional(field, given)? {
            Some(id) => Ok(TeamFilter(Some(self.team_of(field, id)?))),
            None if *self == Self::All => Ok(TeamFilter(None)),
            None => {
                let problem = "is required: the caller may not use all teams";
                Err(Invalid::denied(field, problem, String::new()))
            }
        }
    }

    /// Whether the caller may use `team`.
    #[must_use]
    pub fn contains(&self, team: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(teams) => teams.contains(team),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Fault;

    fn only(teams: &[&str]) -> TeamScope {
        TeamScope::Only(teams.iter().map(|team| (*team).to_owned()).collect())
    }

    fn fault(scope: &TeamScope, team: &str) -> Option<Fault> {
        scope.team("team_id", team.to_owned()).err().map(|invalid| invalid.fault)
    }

    #[test]
    fn a_team_outside_the_scope_is_denied_and_a_malformed_one_is_invalid() {
        let scope = only(&["T1", "T2"]);
        assert_eq!(fault(&scope, "T1"), None);
        for bad in ["", "T\n1", &"T".repeat(513)] {
            assert_eq!(fault(&scope, bad), Some(Fault::Field), "{bad}");
            assert_eq!(fault(&TeamScope::All, bad), Some(Fault::Field), "{bad}");
        }
        // A space, a Greek and a Cyrillic letter, a full-width one, a combining mark, a case.
        for foreign in ["T3", "T", "T11", "T1 ", " T1", "Τ1", "Т1", "Ｔ1", "T1\u{301}", "t1", "*"]
        {
            assert_eq!(fault(&scope, foreign), Some(Fault::TeamDenied(foreign.to_owned())));
            assert_eq!(fault(&TeamScope::All, foreign), None, "{foreign}");
        }
    }

    #[test]
    fn all_teams_are_for_a_caller_of_all_teams() {
        let all = |scope: &TeamScope| scope.filter("team_id", String::new());
        assert_eq!(all(&TeamScope::All).unwrap().team(), None);
        for scope in [only(&[]), only(&["T1"]), only(&["*"])] {
            assert_eq!(all(&scope).unwrap_err().fault, Fault::TeamDenied(String::new()));
        }
        assert_eq!(only(&["T1"]).filter("team_id", "T1".into()).unwrap().team(), Some("T1"));
        assert!(only(&["T1"]).filter("team_id", "T2".into()).is_err());
    }
}
