"""An engine on vLLM servers: started and supervised here, or running already."""
