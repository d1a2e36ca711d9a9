//! How many places for calls that wait or hold each team has.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use super::locked;
use crate::session::SessionError;

/// A team may take a place while it has fewer than this many times the places that are free: one
/// team alone gets three quarters of all, and a second one finds a quarter free. Several teams that
/// fill up one after another can take all; what then becomes free goes to teams that have few:
/// <https://doi.org/10.1109/90.664262>.
const SHARE: usize = 3;

/// Places for calls, and which teams have them.
pub(super) struct Places {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    count: usize,
    by_team: HashMap<Arc<str>, usize>,
}

/// A place. It is free again when this is dropped.
pub(crate) struct PlaceTaken {
    team: Arc<str>,
    places: Arc<Places>,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: Mutex::default() }
    }

    /// Takes a place for a call of `team`.
    ///
    /// # Errors
    /// [`SessionError::TooManyCalls`] if none is free, [`SessionError::TooManyOfTeam`] if the free
    /// ones are left for other teams.
    pub(super) fn take(self: &Arc<Self>, team: &str) -> Result<PlaceTaken, SessionError> {
        let mut taken = locked(&self.taken);
        let free = self.most.saturating_sub(taken.count);
        if free == 0 {
            return Err(SessionError::TooManyCalls);
        }
        let own = taken.by_team.get_key_value(team).map(|(team, count)| (Arc::clone(team), *count));
        let (team, count) = own.unwrap_or_else(|| (team.into(), 0));
        if count >= SHARE.saturating_mul(free) {
            return Err(SessionError::TooManyOfTeam);
        }
        taken.by_team.insert(Arc::clone(&team), count + 1);
        taken.count += 1;
        Ok(PlaceTaken { team, places: Arc::clone(self) })
    }
}

impl Drop for PlaceTaken {
    fn drop(&mut self) {
        let mut taken = locked(&self.places.taken);
        taken.count -= 1;
        if let Some(count) = taken.by_team.get_mut(&self.team) {
            *count -= 1;
            if *count == 0 {
                taken.by_team.remove(&self.team);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as many places as the team gets.
    fn all(places: &Arc<Places>, team: &str) -> Vec<PlaceTaken> {
        std::iter::from_fn(|| places.take(team).ok()).collect()
    }

    #[test]
    fn ten_thousand_calls_of_one_team_leave_room_for_others() {
        let places = Arc::new(Places::new(8_192));
        let noisy: Vec<_> = (0..10_000).filter_map(|_| places.take("noisy").ok()).collect();
        assert_eq!(noisy.len(), 8_192 * 3 / 4);
        assert!(matches!(places.take("noisy"), Err(SessionError::TooManyOfTeam)));
        let quiet: Vec<_> = (0..1_000).map(|_| places.take("quiet").ok().unwrap()).collect();
        drop((noisy, quiet));
        assert_eq!(locked(&places.taken).count, 0);
        assert!(locked(&places.taken).by_team.is_empty());
    }

    #[test]
    fn what_many_teams_leave_goes_to_a_team_that_has_few() {
        let places = Arc::new(Places::new(8_192));
        let mut noisy: Vec<_> =
            (0..20).map(|team| all(&places, &format!("noisy {team}"))).collect();
        assert!(matches!(places.take("quiet"), Err(SessionError::TooManyCalls)));
        noisy[0].pop();
        assert!(matches!(places.take("noisy 0"), Err(SessionError::TooManyOfTeam)));
        assert!(matches!(places.take("noisy 1"), Err(SessionError::TooManyOfTeam)));
        assert!(places.take("quiet").is_ok());
    }

    #[test]
    fn few_places_may_all_be_taken() {
        for most in 1..=2 {
            let places = Arc::new(Places::new(most));
            let taken = all(&places, "one");
            assert_eq!(taken.len(), most);
            assert!(matches!(places.take("other"), Err(SessionError::TooManyCalls)));
        }
    }
}
