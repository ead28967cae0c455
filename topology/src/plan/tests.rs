mod case;
mod execute;
mod invariants;
mod properties;
mod rules;
mod sim;
mod targets;
