"""Word problems with a calculator, solved by an AutoGen agent. Follows the Calc-X task of the Agent Lightning paper."""
