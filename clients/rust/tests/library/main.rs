//! Tests with the real server: access, ends of turns, webhooks, Slack, and the quick start of the README.

mod access;
mod quick_start;
mod slack;
mod turns;
mod webhooks;
