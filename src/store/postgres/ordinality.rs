//! Which row answers which question of a batch.

use crate::store::{StoreError, Verdict};

/// The place that a row's ordinality, counted from 1, names.
pub(super) fn slot<T>(
    answers: &mut [T],
    ord: Result<i64, sqlx::Error>,
) -> Result<&mut T, StoreError> {
    let place = place(answers.len(), ord)?;
    Ok(&mut answers[place])
}

/// Which of `count` that is.
pub(super) fn place(count: usize, ord: Result<i64, sqlx::Error>) -> Result<usize, StoreError> {
    let place = usize::try_from(ord.map_err(StoreError::internal)? - 1);
    place
        .ok()
        .filter(|place| *place < count)
        .ok_or_else(|| StoreError::internal("unexpected row in the answer"))
}

/// What a short statement left for the rules: the places in the batch, and what was asked.
pub(super) fn left<T, A: Copy>(verdicts: &[Verdict<T>], asked: &[A]) -> (Vec<usize>, Vec<A>) {
    let places = verdicts.iter().zip(asked).enumerate();
    places
        .filter(|(_, (verdict, _))| matches!(verdict, Verdict::Retry))
        .map(|(place, (_, asked))| (place, *asked))
        .unzip()
}

/// Puts the rules' verdicts at their places in the batch.
pub(super) fn fill<T>(verdicts: &mut [Verdict<T>], places: Vec<usize>, found: Vec<Verdict<T>>) {
    places.into_iter().zip(found).for_each(|(place, verdict)| verdicts[place] = verdict);
}

/// Notes in `verdicts` that those at `places` may have been done before, by a statement whose answer
/// was lost, if they failed or are undecided: a later run would not know of the doubt.
pub(super) fn doubt<T>(verdicts: &mut [Verdict<T>], places: &[usize]) {
    for &place in places {
        let error = match &verdicts[place] {
            Verdict::Decided(_) => continue,
            Verdict::Failed(error) => error.clone(),
            Verdict::Retry => StoreError::Conflict,
        };
        verdicts[place] = Verdict::Failed(error.after_change());
    }
}

/// Notes in `verdicts` that all that is not decided failed with `error`, unless it is to be retried.
pub(super) fn fail<T>(verdicts: &mut [Verdict<T>], error: &StoreError) {
    if matches!(error, StoreError::Conflict) {
        return;
    }
    let undecided = verdicts.iter_mut().filter(|verdict| matches!(verdict, Verdict::Retry));
    undecided.for_each(|verdict| *verdict = Verdict::Failed(error.clone()));
}
