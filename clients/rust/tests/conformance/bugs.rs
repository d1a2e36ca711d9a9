//! The bugs that `planted` puts into a copy of the library.

/// Goes into the copy: each bug asks it.
pub(crate) const IS_PLANTED: &str = r#"
/// Whether this process has a bug.
pub(crate) fn planted(name: &str) -> bool {
    static BUG: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("ONCEGATE_TEST_PLANTED").ok());
    BUG.as_deref() == Some(name)
}
"#;

/// A grant that the server has not made.
const ENTERED: &str = "{
                let sent = self.hold.state().sent;
                let remaining = duration(Duration::from_secs(60));
                let turn = pb::Turn { attempt: 1, remaining, ..pb::Turn::default() };
                self.read(Some(turn), sent, None);
                return Ok(true);
            }";

/// Changes of one text of a file: the bugs that it plants, the file, the text, and what replaces it.
#[expect(clippy::too_many_lines, reason = "it is a list")]
pub(crate) fn changes() -> Vec<(&'static [&'static str], &'static str, &'static str, String)> {
    let own = str::to_owned;
    vec![
        (
            &["enters-on-busy"],
            "turn_flow.rs",
            "Some(News::Busy(held)) => busy(held),",
            format!(
                r#"Some(News::Busy(_)) if crate::planted("enters-on-busy") => {ENTERED}
            Some(News::Busy(held)) => busy(held),"#
            ),
        ),
        (
            &["enters-on-duplicate"],
            "turn_flow.rs",
            "Some(News::Duplicate(duplicate)) => {",
            format!(
                r#"Some(News::Duplicate(_)) if crate::planted("enters-on-duplicate") => {ENTERED}
            Some(News::Duplicate(duplicate)) => {{"#
            ),
        ),
        (
            &["fails-open"],
            "run.rs",
            "OnUnavailable::Raise => {}",
            own(r#"OnUnavailable::Raise if crate::planted("fails-open") => return Ok(()),
            OnUnavailable::Raise => {}"#),
        ),
        (
            &["impatient"],
            "begin.rs",
            "if !failure.retryable() || left.is_zero() || delay > left {",
            own(r#"if !failure.retryable() || left.is_zero() || delay > left
            || crate::planted("impatient") && !delay.is_zero() {"#),
        ),
        (
            &["no-wait"],
            "turn_flow.rs",
            "request.wait = duration(wait);",
            own(
                r#"request.wait = duration(if crate::planted("no-wait") { Duration::ZERO } else { wait });"#,
            ),
        ),
        (
            &["new-request-id-per-retry"],
            "turn_flow.rs",
            "            request.clone()\n        };\n        let (requests, sent)",
            own(r#"            if crate::planted("new-request-id-per-retry") {
                request.request_id = new_request_id();
            }
            request.clone()
        };
        let (requests, sent)"#),
        ),
        (
            &["no-consumer"],
            "delivery.rs",
            "consumer: self.consumer_or(consumer).to_owned(),",
            own(r#"consumer: if crate::planted("no-consumer") {
                String::new()
            } else {
                self.consumer_or(consumer).to_owned()
            },"#),
        ),
        (
            &["counts-from-receipt", "ignores-elapsed"],
            "hold.rs",
            "state.trusted_end = sent + elapsed + lasts",
            own(r#"let from = if crate::planted("counts-from-receipt") { now() } else { sent };
        let elapsed = if crate::planted("ignores-elapsed") { Duration::ZERO } else { elapsed };
        state.trusted_end = from + elapsed + lasts"#),
        ),
        (
            &["ignores-grace"],
            "hold.rs",
            "let lasts = grace.map_or(",
            own(r#"let lasts = grace.filter(|_| !crate::planted("ignores-grace")).map_or("#),
        ),
        (
            &["silence-is-not-probed"],
            "hold.rs",
            "state.probe_at = now() + (ttl * 2 / 5).min(latest);",
            own(r#"state.probe_at = now() + (ttl * 2 / 5).min(latest);
        if crate::planted("silence-is-not-probed") {
            state.probe_at = now() + Duration::from_secs(3600);
        }"#),
        ),
        (
            &["no-renewal-after-a-break"],
            "keep.rs",
            "hold.state().renewing = true;",
            own(r#"if crate::planted("no-renewal-after-a-break") {
                    return lost(flow, LossReason::Expired, Cause::default(), commands).await;
                }
                hold.state().renewing = true;"#),
        ),
        (
            &["renewal-dies"],
            "keep.rs",
            "() = sleep_until(now() + (hold.config.ttl / 3).min(left / 2)) => {}",
            own(r#"() = sleep_until(now() + if crate::planted("renewal-dies") {
                std::time::Duration::from_secs(3600)
            } else {
                (hold.config.ttl / 3).min(left / 2)
            }) => {}"#),
        ),
        (
            &["loss-does-not-interrupt"],
            "hold.rs",
            "let is_lost = self.finish(Some((reason, source)));",
            own(
                r#"let is_lost = !crate::planted("loss-does-not-interrupt") && self.finish(Some((reason, source)));"#,
            ),
        ),
        (
            &["check-ignores-the-clock"],
            "hold.rs",
            "if state.held && state.trusted_end.is_over() {",
            own(
                r#"if state.held && state.trusted_end.is_over() && !crate::planted("check-ignores-the-clock") {"#,
            ),
        ),
        (
            &["end-after-loss"],
            "turn.rs",
            "return Err(hold.over_by().with_value(result));",
            own(r#"if crate::planted("end-after-loss") {
                let ended = self.flow.end(None, end, now() + FINISH_EFFORT).await;
                return ended.map_err(|problem| self.unsettled(problem, result));
            }
            return Err(hold.over_by().with_value(result));"#),
        ),
        (
            &[],
            "turn_flow.rs",
            "        if let Some(stream) = stream\n            && self.end_stream(",
            own("        let had_stream = stream.is_some();
        if let Some(stream) = stream\n            && self.end_stream("),
        ),
        (
            &["end-is-not-repeated"],
            "turn_flow.rs",
            "let request = FinishTurnRequest {",
            own(r#"if had_stream && crate::planted("end-is-not-repeated") {
            return Err(Failure::unavailable("no answer").into());
        }
        let request = FinishTurnRequest {"#),
        ),
        (
            &["unknown-is-success"],
            "turn.rs",
            ";\n        ended.map_err(|problem| self.unsettled(problem, result))",
            own(r#";
        match ended.map_err(|problem| self.unsettled(problem, result)) {
            Err(Error::OutcomeUnknown { .. }) if crate::planted("unknown-is-success") => Ok(()),
            ended => ended,
        }"#),
        ),
        (
            &["success-is-failure"],
            "scope.rs",
            "        self.turn.settle(end, &stored).await",
            own(r#"        let mut end = end;
        if crate::planted("success-is-failure") {
            end = TurnEnd { outcome: TurnOutcome::Failed.into(), ..TurnEnd::default() };
        }
        self.turn.settle(end, &stored).await"#),
        ),
        (
            &["error-is-success"],
            "turn_flow.rs",
            "        if let Err(problem) = self.end(stream, end, now() + FAIL_EFFORT).await {",
            own(r#"        let mut end = end;
        if crate::planted("error-is-success") {
            end = TurnEnd { outcome: TurnOutcome::Succeeded.into(), ..TurnEnd::default() };
        }
        if let Err(problem) = self.end(stream, end, now() + FAIL_EFFORT).await {"#),
        ),
        (
            &["reject-is-failure"],
            "scope.rs",
            "outcome: TurnOutcome::Rejected.into(),",
            own(r#"outcome: if crate::planted("reject-is-failure") {
                TurnOutcome::Failed.into()
            } else {
                TurnOutcome::Rejected.into()
            },"#),
        ),
        (
            &["own-error-is-masked"],
            "run.rs",
            r#"scope.fail(format!("{error:#}")).await;"#,
            own(r#"if crate::planted("own-error-is-masked") {
                    let outcome = crate::pb::TurnOutcome::Failed.into();
                    let end = crate::pb::TurnEnd { outcome, ..Default::default() };
                    scope.turn.settle(end, &crate::Stored::default()).await?;
                }
                scope.fail(format!("{error:#}")).await;"#),
        ),
        (
            &["single-channel"],
            "link.rs",
            "connection.live.load(Ordering::Relaxed) < STREAMS_PER_CONNECTION",
            own(r#"crate::planted("single-channel")
                || connection.live.load(Ordering::Relaxed) < STREAMS_PER_CONNECTION"#),
        ),
        (
            &["lease-is-not-released"],
            "lease.rs",
            "let until = now() + RELEASE_EFFORT;",
            own(r#"if crate::planted("lease-is-not-released") {
            return;
        }
        let until = now() + RELEASE_EFFORT;"#),
        ),
    ]
}
