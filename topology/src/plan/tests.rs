mod invariants;
mod properties;
mod rules;
mod sim;
