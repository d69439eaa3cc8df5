"""Word problems with a calculator, solved by an AutoGen agent; after the Calc-X task of the Agent Lightning paper."""
