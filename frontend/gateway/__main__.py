from frontend.gateway.main import main

main()
