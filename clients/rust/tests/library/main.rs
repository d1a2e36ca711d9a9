//! Tests with the real server: access, ends of turns, webhooks, and the quick start of the README.

mod access;
mod quick_start;
mod turns;
mod webhooks;
